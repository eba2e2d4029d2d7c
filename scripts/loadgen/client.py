"""Send one request and stamp what comes back: a small HTTP/1.1 client that does no work while bytes arrive.

A read costs one recvmsg into a common buffer, which also brings the moment at which the kernel received the bytes
(SO_TIMESTAMPNS), so that a time does not depend on how late this process came to read. Nothing is parsed but the head,
and the end where the bytes look like one; the rest is read out of the record after the run.
"""

from __future__ import annotations

import asyncio
import socket
import time
from array import array
from dataclasses import dataclass, field
from time import perf_counter_ns

import numpy as np

from loadgen.record import Record
from loadgen.wire import Response

# Linux, asm-generic/socket.h: ancillary data of two 64-bit integers, seconds and nanoseconds of CLOCK_REALTIME.
SO_TIMESTAMPNS = 35
STAMP_BYTES = 64
READ_BUFFER = 1 << 18
# A server that never ends its answer must not take the memory of the client with it.
LARGEST_ANSWER = 1 << 28
OVERLOADED = (429, 503)
ERROR_BYTES = 300
# Every chunked body ends so; few reads before the last one do.
END = b"\r\n\r\n"
# Readings of the two clocks differ by microseconds from one another; more than this, and the wall clock was set.
STEP_NS = 1_000_000

_buffer = memoryview(bytearray(READ_BUFFER))
_buffers = [_buffer]


def realtime_offset() -> int:
    """CLOCK_REALTIME - CLOCK_MONOTONIC in ns, from the closest of three readings."""
    readings = []
    for _ in range(3):
        before, wall, after = perf_counter_ns(), time.time_ns(), perf_counter_ns()
        readings.append((after - before, wall - (before + after) // 2))
    return min(readings)[1]


@dataclass
class Counts:
    """What a process's connections did: opened, sent again on a fresh one, reads that the kernel did not stamp, steps of the wall clock."""

    sockets: int = 0
    retries: int = 0
    unstamped: int = 0
    clock_steps: int = 0
    offset_ns: int = field(default_factory=realtime_offset)


counts = Counts()


def post(host: str, port: int, path: str, body: bytes) -> bytes:
    """The bytes of a POST of JSON. No compression is asked for: it would delay and merge events."""
    head = f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\nAccept-Encoding: identity\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Connection:
    """A user's connection, opened anew when the server has closed it; carries one request at a time."""

    def __init__(self, host: str, port: int):
        self.address = (host, port)
        self.socket: socket.socket | None = None
        self.used = False
        self.done: asyncio.Future[str | None] | None = None

    async def open(self) -> None:
        """Raises OSError where nobody listens."""
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        counts.sockets += 1
        try:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(made, self.address)
        except BaseException:
            made.close()
            raise
        self.socket, self.used = made, False
        self.receive = made.recvmsg_into
        loop.add_reader(made, self._readable)

    def close(self) -> None:
        if self.socket:
            asyncio.get_running_loop().remove_reader(self.socket)
            self.socket.close()
            self.socket = None

    async def send(self, request: bytes, record: Record, timeout_s: float) -> None:
        """Send `request` and fill `record`; raises nothing but cancellation.

        A kept connection that the server closed before a byte of the answer came is replaced once, and counted.
        """
        try:
            async with asyncio.timeout(timeout_s):
                kept = self.socket is not None and self.used
                error = await self._exchange(request, record)
                if error and kept and not self.sizes:
                    counts.retries += 1
                    record.retries = 1
                    error = await self._exchange(request, record)
            record.outcome, record.error = self._outcome(error)
        except TimeoutError:
            record.outcome, record.error = "timeout", f"not finished after {timeout_s} s"
        except OSError as failed:
            record.outcome, record.error = "connect_error" if record.sent_ns is None else "disconnected", f"{type(failed).__name__}: {failed}"
        finally:
            self._finish(record)

    async def _exchange(self, request: bytes, record: Record) -> str | None:
        """One attempt; gives what cut the answer off, or None."""
        self.response, self.fed = Response(), 0
        self.stamps, self.sizes, self.wire = array("q"), array("i"), bytearray()
        if not self.socket:
            await self.open()
        assert self.socket
        loop = asyncio.get_running_loop()
        self.done = loop.create_future()
        self.used = True
        record.sent_ns = perf_counter_ns()
        try:
            sent = self.socket.send(request)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.close()
            return f"{type(error).__name__}: {error}"
        if sent < len(request):
            await loop.sock_sendall(self.socket, memoryview(request)[sent:])
        return await self.done

    def _readable(self) -> None:
        try:
            size, told, _, _ = self.receive(_buffers, STAMP_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._ended(f"{type(error).__name__}: {error}")
            return
        if not size or self.done is None:
            self._closed()
            return
        if told:
            self.stamps.frombytes(told[0][2])
        else:
            self.stamps.extend(divmod(time.time_ns(), 1_000_000_000))
            counts.unstamped += 1
        self.sizes.append(size)
        wire = self.wire
        wire += _buffer[:size]
        if self.response.delimited == "length" or self.response.status is None or wire.endswith(END) or len(wire) > LARGEST_ANSWER:
            self._parse()

    def _parse(self) -> None:
        """Feed what has not been fed, and see whether the answer is complete."""
        try:
            self.response.feed(bytes(memoryview(self.wire)[self.fed :]))
        except ValueError as error:
            self._ended(None if self.response.ended else str(error))
            return
        self.fed = len(self.wire)
        if self.response.ended:
            if not self.response.reusable:
                self.close()
            self._resolve(None)
        elif len(self.wire) > LARGEST_ANSWER:
            self._ended(f"more than {LARGEST_ANSWER} bytes")

    def _closed(self) -> None:
        """The server closed the connection: the end of the answer, if that is how its end is told."""
        if self.done is not None and self.fed < len(self.wire):
            self._parse()
        if self.done is not None and self.response.status is not None and self.response.delimited == "close":
            self._ended(None)
        else:
            self._ended("closed by the server")

    def _ended(self, error: str | None) -> None:
        self.close()
        self._resolve(error)

    def _resolve(self, error: str | None) -> None:
        if self.done and not self.done.done():
            self.done.set_result(error)
        self.done = None

    def _outcome(self, error: str | None) -> tuple[str, str | None]:
        status = self.response.status
        if error:
            return "disconnected", error
        if status == 200:
            return "complete", None
        said = bytes(self.wire).partition(END)[2][:ERROR_BYTES].decode(errors="replace")
        return "overloaded" if status in OVERLOADED else "http_error", f"{status}: {said}"

    def _finish(self, record: Record) -> None:
        """Close what is not over, and move what was received into the record."""
        record.done_ns = perf_counter_ns()
        if self.done is not None:
            self.close()
            self.done = None
        if record.sent_ns is None:
            return
        offset = realtime_offset()
        counts.clock_steps += abs(offset - counts.offset_ns) > STEP_NS
        counts.offset_ns = offset
        stamps = np.frombuffer(self.stamps, dtype=np.int64).reshape(-1, 2)
        record.read_ns = stamps[:, 0] * 1_000_000_000 + stamps[:, 1] - offset
        record.read_bytes = np.frombuffer(self.sizes, dtype=np.int32)
        record.wire, record.status = bytes(self.wire), self.response.status
        del self.response, self.stamps, self.sizes, self.wire
