"""Send one request and stamp what comes back: a small HTTP/1.1 client that does no work while bytes arrive.

A read costs one recvmsg into a common buffer, which also brings the moment at which the kernel received the bytes
(SO_TIMESTAMPNS), so that a time does not depend on how late this process came to read. All connections that have bytes are
read in one loop (an epoll set that the event loop watches as one file). Nothing is parsed but the head, and the end where the
bytes look like one; the rest is read out of the record after the run.
"""

from __future__ import annotations

import asyncio
import select
import socket
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any

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

MOST_READY = 1024
# From so many connections on reads wait for a moment to be made together.
RESTED, REST_S = 64, 0.001
CLOSING = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


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


class Receiver:
    """Reads the connections of a running event loop."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        # File -> recvmsg_into, where its stamps, sizes and bytes go, and the connection.
        self.live: dict[
            int,
            tuple[
                Callable[..., Any],
                Callable[[bytes], None],
                Callable[[int], None],
                bytearray,
                Connection,
            ],
        ] = {}
        self.buffer = memoryview(bytearray(READ_BUFFER))
        self.loop = asyncio.get_running_loop()
        self.resting: asyncio.TimerHandle | None = None
        self.loop.add_reader(self.epoll.fileno(), self._drain)

    def close(self) -> None:
        if self.resting:
            self.resting.cancel()
        self.loop.remove_reader(self.epoll.fileno())
        self.epoll.close()

    def watch(self, connection: Connection, made: socket.socket) -> None:
        """Edge-triggered: a connection is reported when bytes come, not as long as they lie there."""
        self.expect(connection, made)
        self.epoll.register(made, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)

    def expect(self, connection: Connection, made: socket.socket) -> None:
        """From now on what comes belongs to the connection's present answer."""
        self.live[made.fileno()] = (
            made.recvmsg_into,
            connection.stamps.frombytes,
            connection.sizes.append,
            connection.wire,
            connection,
        )

    def forget(self, made: socket.socket) -> None:
        self.live.pop(made.fileno(), None)
        self.epoll.unregister(made)

    def _drain(self) -> None:
        """The hot path: some microseconds for each read."""
        live, buffer, buffers = self.live, self.buffer, [self.buffer]
        ready = self.epoll.poll(0, MOST_READY)
        self._rest(bool(ready) and len(live) > RESTED)
        for file, events in ready:
            if file not in live:  # closed by what came before it
                continue
            receive, stamp, sized, wire, connection = live[file]
            size = READ_BUFFER
            try:
                # A read that does not fill the buffer has emptied the socket; where it is closing there is its end to read.
                while size == READ_BUFFER or (size and events & CLOSING):
                    size, told, _, _ = receive(buffers, STAMP_BYTES)
                    if not size:
                        connection.closed()
                        break
                    if told:
                        stamp(told[0][2])
                    else:
                        connection.stamp_here()
                    sized(size)
                    wire += buffer[:size]
                    if connection.eager or wire.endswith(END) or len(wire) > LARGEST_ANSWER:
                        connection.parse()
                        if file not in live or live[file][3] is not wire:
                            break
            except (BlockingIOError, InterruptedError):
                continue
            except OSError as error:
                connection.ended(f"{type(error).__name__}: {error}")

    def _rest(self, busy: bool) -> None:
        """Let bytes gather for a moment while they come on many connections: being woken for each costs more than reading it, and
        the kernel stamps them. Events of one answer that come within that moment share a stamp; metrics.client counts them."""
        if busy:
            if not self.resting:
                self.loop.remove_reader(self.epoll.fileno())
            self.resting = self.loop.call_later(REST_S, self._drain)
        elif self.resting:
            self.resting = None
            self.loop.add_reader(self.epoll.fileno(), self._drain)


class Connection:
    """A user's connection, opened anew when the server has closed it; carries one request at a time."""

    def __init__(self, receiver: Receiver, host: str, port: int):
        self.receiver, self.address = receiver, (host, port)
        self.socket: socket.socket | None = None
        self.used = False
        self.done: asyncio.Future[str | None] | None = None
        self.response = Response()
        self._expect_nothing()

    def _expect_nothing(self) -> None:
        """Between requests: any byte that comes is one too many."""
        self.response.release()
        self.response, self.fed, self.eager = Response(), 0, True
        self.stamps, self.sizes, self.wire = array("q"), array("i"), bytearray()

    async def open(self) -> None:
        """Raises OSError where nobody listens."""
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        counts.sockets += 1
        try:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            await asyncio.get_running_loop().sock_connect(made, self.address)
        except BaseException:
            made.close()
            raise
        self.socket, self.used = made, False
        self.receiver.watch(self, made)

    def close(self) -> None:
        if self.socket:
            self.receiver.forget(self.socket)
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
            record.outcome, record.error = (
                "connect_error" if record.sent_ns is None else "disconnected",
                f"{type(failed).__name__}: {failed}",
            )
        finally:
            self._finish(record)

    async def _exchange(self, request: bytes, record: Record) -> str | None:
        """One attempt; gives what cut the answer off, or None."""
        self._expect_nothing()
        if not self.socket:
            await self.open()
        assert self.socket
        loop = asyncio.get_running_loop()
        self.done = loop.create_future()
        self.receiver.expect(self, self.socket)
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

    def stamp_here(self) -> None:
        """The time of a read that the kernel did not stamp."""
        self.stamps.extend(divmod(time.time_ns(), 1_000_000_000))
        counts.unstamped += 1

    def parse(self) -> None:
        """Feed what has not been fed, and see whether the answer is complete."""
        if self.done is None:
            self.close()
            return
        try:
            self.response.feed(bytes(memoryview(self.wire)[self.fed :]))
        except ValueError as error:
            self.ended(None if self.response.ended else str(error))
            return
        self.fed = len(self.wire)
        self.eager = self.response.status is None or self.response.delimited == "length"
        if self.response.ended:
            if not self.response.reusable:
                self.close()
            self._resolve(None)
        elif len(self.wire) > LARGEST_ANSWER:
            self.ended(f"more than {LARGEST_ANSWER} bytes")

    def closed(self) -> None:
        """The server closed the connection: the end of the answer, if that is how its end is told."""
        if self.done is not None and self.fed < len(self.wire):
            self.parse()
        if (
            self.done is not None
            and self.response.status is not None
            and self.response.delimited == "close"
        ):
            self.ended(None)
        else:
            self.ended("closed by the server")

    def ended(self, error: str | None) -> None:
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
        record.stamps, record.offset_ns, record.read_bytes = self.stamps, offset, self.sizes
        record.wire, record.status = self.wire, self.response.status
        self._expect_nothing()
        if self.socket:
            self.receiver.expect(self, self.socket)
