"""A server that does no work: what the client is calibrated against.

    python -m loadgen.null_server       (prints its port)

A request names `tokens`, `first_ms` and `gap_ms`; each event says when it was written (`sent_ns`, CLOCK_MONOTONIC) and when the
kernel had received the request (`arrived_ns`). With gap_ms 0 it writes as fast as the connections take it, an event a turn.
"""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import struct
import sys
from time import perf_counter_ns

import uvloop

from loadgen.client import SO_TIMESTAMPNS, STAMP_BYTES, realtime_offset

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
# As long as what backends send for a token.
EVENT = (
    b'data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk","created":1717545600,"model":"null","choices":[{"index":0,"delta":'
    b'{"content":" the"},"logprobs":null,"finish_reason":null}],"arrived_ns":%d,"sent_ns":%d}\n\n'
)
LAST = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}\n\ndata: [DONE]\n\n'
BACKLOG = 4096


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


END = chunk(LAST) + chunk(b"")


async def serve(connection: socket.socket) -> None:
    """Answer requests until the client closes; a send goes to the socket at once, so that its stamp is true."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    with connection:
        try:
            while True:
                received = b""
                while not received.endswith(b"}"):
                    await readable(connection)
                    more, told, _, _ = connection.recvmsg(1 << 16, STAMP_BYTES)
                    if not more:
                        return
                    received += more
                seconds, nanoseconds = struct.unpack("qq", told[0][2])
                await answer(
                    connection,
                    json.loads(received.partition(b"\r\n\r\n")[2]),
                    seconds * 1_000_000_000 + nanoseconds - realtime_offset(),
                )
        except ConnectionError:
            return


async def readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(connection, ready.set_result, None)
    try:
        await ready
    finally:
        loop.remove_reader(connection)


async def answer(connection: socket.socket, asked: dict[str, float], arrived: int) -> None:
    write(connection, HEAD)
    due = arrived + asked["first_ms"] * 1e6
    for _ in range(int(asked["tokens"])):
        await asyncio.sleep(max(0.0, (due - perf_counter_ns()) / 1e9))
        while not write(connection, chunk(EVENT % (arrived, perf_counter_ns()))):
            await asyncio.sleep(0.001)
        due += asked["gap_ms"] * 1e6
    while not write(connection, END):
        await asyncio.sleep(0.001)


def write(connection: socket.socket, data: bytes) -> bool:
    """Whether the socket took it; raises ConnectionError where the client is gone, or where it took a part only."""
    try:
        if connection.send(data) < len(data):
            raise ConnectionError("a short write: the client does not read")
    except BlockingIOError:
        return False
    return True


async def main() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    loop, tasks = asyncio.get_running_loop(), set()
    with socket.create_server(("127.0.0.1", 0), backlog=BACKLOG) as listening:
        listening.setblocking(False)
        print(listening.getsockname()[1], flush=True)
        loop.add_reader(sys.stdin, loop.stop)
        while True:
            connection, _ = await loop.sock_accept(listening)
            task = asyncio.ensure_future(serve(connection))
            tasks.add(task)
            task.add_done_callback(tasks.discard)


if __name__ == "__main__":
    try:
        uvloop.run(main())
    except RuntimeError:  # the loop was stopped: standard input has ended, and so has whoever asked
        sys.exit(0)
