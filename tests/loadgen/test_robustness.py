"""Servers that misbehave: each request becomes a record of what happened, nothing is raised, memory stays bounded."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import perf_counter_ns

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from loadgen import client, record
from metrics import requests

# What a server does with a request; a true value keeps the connection.
Handler = Callable[[asyncio.StreamWriter], Awaitable[object]]

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
CHUNKED = HEAD.replace(b"Connection", b"Transfer-Encoding: chunked\r\nConnection")


def event(text: str) -> bytes:
    return (
        b"data: "
        + json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).encode()
        + b"\n\n"
    )


END = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def sent_to(handler: Handler, timeout_s: float = 5.0) -> record.Record:
    """The record of one request to a server that reads it and then does as `handler` says."""
    [made] = all_sent_to(handler, 1, timeout_s)
    return made


def all_sent_to(handler: Handler, requests: int, timeout_s: float = 5.0) -> list[record.Record]:
    """The records of requests, one after another as one user sends them."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not writer.is_closing():
                await reader.readuntil(b"{}")
                keep = await handler(writer)
                await writer.drain()
                if not keep:
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.ensure_future(serve(reader, writer)))

    serving: list[asyncio.Task[None]] = []

    async def run() -> list[record.Record]:
        made = []
        async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            receiver = client.Receiver()
            connection = client.Connection(receiver, "127.0.0.1", port)
            for _ in range(requests):
                made.append(record.Record(0, 0, 0, 0, "load", 0))
                await connection.send(
                    client.post("127.0.0.1", port, "/", b"{}"), made[-1], timeout_s
                )
            connection.close()
            receiver.close()
            await asyncio.gather(*serving)
        return made

    return asyncio.run(run())


def judged(made: record.Record, tokenizer: Tokenizer) -> pd.Series:
    frame = pd.DataFrame([{name: getattr(made, name) for name in record.SCHEMA.names}])
    frame["wire"] = frame.wire.map(bytes)
    return requests.frame(
        frame.astype(dict.fromkeys(("scheduled_ns", "sent_ns", "done_ns", "status"), "Int64")),
        tokenizer,
    ).iloc[0]


def writes(*parts: bytes) -> Handler:
    async def handler(writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.002)

    return handler


async def trickle(writer: asyncio.StreamWriter) -> None:
    for byte in HEAD + event("Grüße aus") + event(" Köln") + END:
        writer.write(bytes([byte]))
        await writer.drain()


def reset_after(*parts: bytes) -> Handler:
    async def handler(writer: asyncio.StreamWriter) -> None:
        writer.write(b"".join(parts))
        await writer.drain()
        await asyncio.sleep(0.02)
        # Linger of zero seconds: closing sends RST instead of FIN.
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        writer.transport.abort()

    return handler


async def stall(writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + event("a"))
    await writer.drain()
    await asyncio.sleep(1)


async def endless(writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD)
    while True:
        writer.write(event("a") * 1000)
        await writer.drain()


def status(line: bytes, *headers: bytes) -> bytes:
    return (
        b"HTTP/1.1 "
        + line
        + b"\r\n"
        + b"".join(header + b"\r\n" for header in headers)
        + b"Content-Length: 4\r\nConnection: close\r\n\r\nbusy"
    )


def told_length(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


# name, what the server does, the client's outcome, the outcome of the answer, its text
TABLE: list[tuple[str, Handler, str, str, str]] = [
    ("one byte at a time", trickle, "complete", "ok", "Grüße aus Köln"),
    (
        "chunked, a chunk in two writes",
        writes(
            CHUNKED,
            b"%x\r\n" % len(event("ab")),
            event("ab")[:9],
            event("ab")[9:] + b"\r\n",
            chunk(END),
            chunk(b""),
        ),
        "complete",
        "ok",
        "ab",
    ),
    (
        "ten megabytes in one event",
        writes(HEAD, event("x" * 10_000_000), END),
        "complete",
        "ok",
        "x" * 10_000_000,
    ),
    ("reset", reset_after(CHUNKED, chunk(event("a"))), "disconnected", "disconnected", "a"),
    (
        "reset, with a body that only its end delimits",
        reset_after(HEAD, event("a"), END),
        "disconnected",
        "disconnected",
        "a",
    ),
    (
        "chunked, with extensions and a trailer",
        writes(
            CHUNKED,
            b"%x;a=b\r\n%s\r\n" % (len(event("ab") + END), event("ab") + END),
            b"0\r\nX-Late: 1\r\n\r\n",
        ),
        "complete",
        "ok",
        "ab",
    ),
    ("a body of a told length", writes(told_length(event("ab") + END)), "complete", "ok", "ab"),
    (
        "an announcement first",
        writes(b"HTTP/1.1 100 Continue\r\n\r\n", told_length(event("ab") + END)),
        "complete",
        "ok",
        "ab",
    ),
    (
        "events that end with CRLF",
        writes(
            CHUNKED,
            *(chunk(part.replace(b"\n", b"\r\n")) for part in (event("a"), event("b"), END)),
            chunk(b""),
        ),
        "complete",
        "ok",
        "ab",
    ),
    (
        "bytes after the end",
        writes(CHUNKED, chunk(event("ab") + END), chunk(b"") + b"garbage"),
        "complete",
        "ok",
        "ab",
    ),
    (
        "a chunk without a length",
        writes(CHUNKED, chunk(event("a")), b"zz\r\n"),
        "disconnected",
        "disconnected",
        "a",
    ),
    ("closed before any answer", writes(), "disconnected", "disconnected", ""),
    ("not HTTP", writes(b"SSH-2.0-OpenSSH\r\n\r\n"), "disconnected", "disconnected", ""),
    (
        "429 with Retry-After",
        writes(status(b"429 Too Many Requests", b"Retry-After: 3")),
        "overloaded",
        "overloaded",
        "",
    ),
    ("503", writes(status(b"503 Service Unavailable")), "overloaded", "overloaded", ""),
    ("500", writes(status(b"500 Internal Server Error")), "http_error", "http_error", ""),
    (
        "200 with an error event",
        writes(HEAD, event("a"), b'data: {"error": {"message": "boom"}}\n\n', END),
        "complete",
        "error_event",
        "a",
    ),
    (
        "invalid UTF-8",
        writes(HEAD, b'data: {"choices": [{"text": "\xff"}]}\n\n', END),
        "complete",
        "ok",
        "\N{REPLACEMENT CHARACTER}",
    ),
    ("invalid JSON", writes(HEAD, b"data: {broken\n\n", END), "complete", "error_event", ""),
    (
        "a chunk after [DONE]",
        writes(HEAD, event("a"), END, event("late")),
        "complete",
        "ok",
        "alate",
    ),
    ("closed without [DONE]", writes(HEAD, event("a")), "complete", "truncated", "a"),
    (
        "chunked, closed without the last chunk",
        writes(CHUNKED, chunk(event("a"))),
        "disconnected",
        "disconnected",
        "a",
    ),
    ("a stall longer than the timeout", stall, "timeout", "timeout", "a"),
]


@pytest.mark.parametrize(
    ("handler", "outcome", "answer", "text"),
    [row[1:] for row in TABLE],
    ids=[row[0] for row in TABLE],
)
def test_what_a_server_did_is_what_is_recorded(
    handler: Handler, outcome: str, answer: str, text: str, tokenizer: Tokenizer
) -> None:
    made = sent_to(handler, timeout_s=0.5 if outcome == "timeout" else 5)
    found = judged(made, tokenizer)

    assert made.outcome == outcome, made.error
    assert found.outcome == answer
    assert found.text == text
    assert sum(made.read_bytes) == len(made.wire)
    assert len(made.read_bytes) == len(made.read_ns)
    assert made.done_ns is not None
    assert made.error or outcome == "complete"


def test_an_answer_without_end_is_cut_at_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "LARGEST_ANSWER", 1 << 20)

    made = sent_to(endless)

    assert made.outcome == "disconnected"
    assert "more than 1048576 bytes" in (made.error or "")
    assert len(made.wire) <= (1 << 20) + client.READ_BUFFER


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_split_of_the_bytes_gives_the_same_answer(
    data: st.DataObject, tokenizer: Tokenizer
) -> None:
    whole = (
        CHUNKED
        + b"".join(chunk(part) for part in (b": ping\n\n", event("Grüße"), event(" 😀 "), END))
        + chunk(b"")
    )
    cuts = sorted(data.draw(st.sets(st.integers(1, len(whole) - 1), max_size=8)))
    parts = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]

    found = judged(sent_to(writes(*parts)), tokenizer)

    assert found.outcome == "ok"
    assert found.text == "Grüße 😀 "


WHOLE = CHUNKED.replace(b"\r\nConnection: close", b"") + chunk(event("a") + END) + chunk(b"")


def test_a_kept_connection_that_was_closed_meanwhile_is_opened_anew() -> None:
    before = client.counts.sockets

    records = all_sent_to(writes(WHOLE), 3)

    assert [made.outcome for made in records] == ["complete"] * 3
    assert client.counts.sockets - before == 3
    assert [made.retries for made in records] == [0, 0, 0] or sum(
        made.retries for made in records
    ) <= 2, "whether the end was seen before the next request is chance"


def test_a_kept_connection_is_used_again() -> None:
    async def keeps(writer: asyncio.StreamWriter) -> bool:
        writer.write(WHOLE)
        return True

    before = client.counts.sockets

    assert [made.outcome for made in all_sent_to(keeps, 3)] == ["complete"] * 3
    assert client.counts.sockets - before == 1


def test_a_request_on_a_kept_connection_that_proves_dead_is_sent_again_once() -> None:
    asked = 0

    async def dies_on_the_second(writer: asyncio.StreamWriter) -> bool:
        nonlocal asked
        asked += 1
        if asked == 2:  # it was read, and no byte of an answer comes
            return False
        writer.write(WHOLE)
        return True

    records = all_sent_to(dies_on_the_second, 2)

    assert [(made.outcome, made.retries) for made in records] == [("complete", 0), ("complete", 1)]
    assert asked == 3


def test_a_large_request_is_sent_whole() -> None:
    async def read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(0.1)
        length = int(head.partition(b"Content-Length: ")[2].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        writer.write(told_length(event(str(body.count(b"x"))) + END))
        writer.close()
        await writer.wait_closed()

    async def run() -> record.Record:
        made = record.Record(0, 0, 0, 0, "load", 0)
        async with await asyncio.start_server(read, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            receiver = client.Receiver()
            connection = client.Connection(receiver, "127.0.0.1", port)
            await connection.send(client.post("127.0.0.1", port, "/", b"x" * 20_000_000), made, 10)
            connection.close()
            receiver.close()
        return made

    made = asyncio.run(run())
    assert made.outcome == "complete"
    assert b"20000000" in made.wire


def test_without_the_kernels_stamps_reads_are_stamped_here_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where the kernel or a sandbox does not give them."""
    monkeypatch.setattr(client, "STAMP_BYTES", 0)
    before, now = client.counts.unstamped, perf_counter_ns()

    made = sent_to(writes(WHOLE))

    assert client.counts.unstamped - before == len(made.read_ns) > 0
    assert now < made.read_ns[0] <= (made.done_ns or 0)


def test_a_step_of_the_wall_clock_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    before = client.counts.clock_steps
    monkeypatch.setattr(client.counts, "offset_ns", client.counts.offset_ns - 5_000_000)

    sent_to(writes(WHOLE))

    assert client.counts.clock_steps - before == 1


def test_requests_leave_nothing_to_collect() -> None:
    """The collector is off under load."""

    async def keeps(writer: asyncio.StreamWriter) -> bool:
        writer.write(WHOLE)
        return True

    def garbage(requests: int) -> int:
        gc.collect()
        all_sent_to(keeps, requests)
        return gc.collect()

    gc.disable()
    try:
        assert garbage(60) - garbage(10) < 50, "less than one object a request"
    finally:
        gc.enable()
