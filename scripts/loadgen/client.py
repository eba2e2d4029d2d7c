"""Send one request and stamp what comes back. aiohttp speaks HTTP; this file keeps it out of the way of the clock."""

from __future__ import annotations

import asyncio
from time import perf_counter_ns
from types import SimpleNamespace

import aiohttp

from loadgen.record import Record

READ_BUFFER = 1 << 24
# A server that never ends its answer must not take the memory of the client with it.
LARGEST_BODY = 1 << 28
OVERLOADED = (429, 503)


def session() -> aiohttp.ClientSession:
    """A session without the defaults that hold a load generator back.

    No limit of connections, a read buffer that never pauses the socket, no decompression, no proxy or credentials from
    the environment. A connection serves one request: servers that close idle ones cannot fail the next, and TTFT counts
    from the moment the bytes are sent, after connecting.
    """
    trace = aiohttp.TraceConfig()
    trace.on_request_chunk_sent.append(_stamp_sent)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        auto_decompress=False,
        trust_env=False,
        read_bufsize=READ_BUFFER,
        timeout=aiohttp.ClientTimeout(total=None),
        headers={"Accept-Encoding": "identity", "Content-Type": "application/json"},
        trace_configs=[trace],
    )


async def _stamp_sent(_session: aiohttp.ClientSession, context: SimpleNamespace, _params: aiohttp.TraceRequestChunkSentParams) -> None:
    context.trace_request_ctx.sent_ns = perf_counter_ns()


async def send(session: aiohttp.ClientSession, url: str, body: bytes, record: Record, timeout_s: float) -> None:
    """POST `body`, filling `record` as things happen; raises nothing but cancellation."""
    chunks: list[bytes] = []
    try:
        async with asyncio.timeout(timeout_s):
            async with session.post(url, data=body, trace_request_ctx=record) as response:
                record.headers_ns = perf_counter_ns()
                record.status = response.status
                size = 0
                while chunk := await response.content.readany():
                    record.read_ns.append(perf_counter_ns())
                    record.read_bytes.append(len(chunk))
                    chunks.append(chunk)
                    size += len(chunk)
                    if size > LARGEST_BODY:
                        raise aiohttp.ClientPayloadError(f"more than {LARGEST_BODY} bytes")
        record.outcome = "complete" if record.status == 200 else "overloaded" if record.status in OVERLOADED else "http_error"
        if record.status != 200:
            record.error = b"".join(chunks)[:300].decode(errors="replace")
    except TimeoutError:
        record.outcome, record.error = "timeout", f"not finished after {timeout_s} s"
    except aiohttp.ClientConnectorError as error:
        record.outcome, record.error = "connect_error", str(error)
    except (aiohttp.ClientError, OSError, ValueError) as error:
        record.outcome, record.error = "disconnected", f"{type(error).__name__}: {error}"
    finally:
        record.done_ns = perf_counter_ns()
        record.body = b"".join(chunks)
