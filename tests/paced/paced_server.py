"""A server that does no work but keeps time: the first token after exactly --ttft-ms, then one each --gap-ms.

Speaks OpenAI's streaming chat. Each event says when it was written (`sent_ns`, CLOCK_MONOTONIC) and the first also when
the request had arrived and what it said, so that a test compares a client's stamps with the truth. Faults are asked for by name.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from typing import Any

FAULTS = (
    "none",
    "no-start",
    "never-ready",
    "refuse",
    "die",
    "die-of-memory",
    "die-crowded",
    "cut",
    "error-event",
    "silent",
    "stall",
)


class Server:
    def __init__(self, ttft_s: float, gap_s: float, tokens: int, fault: str, fault_after: int):
        self.ttft_s, self.gap_s, self.tokens, self.fault, self.fault_after = (
            ttft_s,
            gap_s,
            tokens,
            fault,
            fault_after,
        )
        self.served = self.under_way = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection until the client closes it, or says that it will."""
        try:
            head = b""
            while b"connection: close" not in head.lower() and not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                arrived = time.perf_counter_ns()
                lengths = [
                    line.split(b":")[1]
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length:")
                ]
                body = await reader.readexactly(int(lengths[0]) if lengths else 0)
                if head.startswith((b"GET", b"POST /reset")):
                    status = (
                        b"503 Service Unavailable" if self.fault == "never-ready" else b"200 OK"
                    )
                    writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\nok")
                    await writer.drain()
                else:
                    self.served += 1
                    self.under_way += 1
                    count = self.under_way if self.fault == "die-crowded" else self.served
                    fault = self.fault if count > self.fault_after else "none"
                    try:
                        await self.answer(writer, arrived, json.loads(body), fault)
                    finally:
                        self.under_way -= 1
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def answer(
        self, writer: asyncio.StreamWriter, arrived: int, asked: dict[str, Any], fault: str
    ) -> None:
        if fault in ("die", "die-of-memory", "die-crowded"):
            print(
                "terminate called after throwing std::bad_alloc"
                if fault == "die-of-memory"
                else "segmentation fault, so to speak",
                flush=True,
            )
            os._exit(1)
        if fault == "refuse":
            writer.write(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\n\r\noops")
            return
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        self.send(
            writer,
            {
                "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}],
                "arrived_ns": arrived,
                "heard": asked.get("messages", []),
            },
        )
        if fault == "silent":
            self.send(writer, {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            self.end(writer)
            return
        due = arrived + self.ttft_s * 1e9
        for number in range(self.tokens):
            await asyncio.sleep(max(0.0, (due - time.perf_counter_ns()) / 1e9))
            if number == self.tokens // 2 and fault == "cut":
                writer.transport.abort()
                return
            if number == self.tokens // 2 and fault == "error-event":
                self.send(
                    writer, {"error": {"message": "the engine gave up", "type": "server_error"}}
                )
                self.end(writer)
                return
            if number == self.tokens // 2 and fault == "stall":
                await asyncio.sleep(3600)
            self.send(
                writer,
                {
                    "choices": [{"index": 0, "delta": {"content": f" w{number}"}}],
                    "sent_ns": time.perf_counter_ns(),
                },
            )
            due += self.gap_s * 1e9
        self.send(writer, {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
        self.send(
            writer,
            {
                "choices": [],
                "usage": {
                    "prompt_tokens": 11,
                    "completion_tokens": self.tokens,
                    "total_tokens": 11 + self.tokens,
                },
            },
        )
        self.end(writer)
        await writer.drain()

    def send(self, writer: asyncio.StreamWriter, value: object) -> None:
        self.chunk(writer, b"data: " + json.dumps(value).encode() + b"\n\n")

    def end(self, writer: asyncio.StreamWriter) -> None:
        self.chunk(writer, b"data: [DONE]\n\n")
        self.chunk(writer, b"")

    def chunk(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(b"%x\r\n%s\r\n" % (len(data), data))


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ttft-ms", type=float, default=30.0)
    parser.add_argument("--gap-ms", type=float, default=5.0)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--fault", choices=FAULTS, default="none")
    parser.add_argument(
        "--fault-after",
        type=int,
        default=0,
        help="requests served well before the fault; of die-crowded, requests under way",
    )
    args = parser.parse_args()
    if args.fault == "no-start":
        sys.exit("paced_server: cannot start, as asked")
    server = Server(
        args.ttft_ms / 1e3, args.gap_ms / 1e3, args.tokens, args.fault, args.fault_after
    )
    async with await asyncio.start_server(
        server.handle, "127.0.0.1", args.port, backlog=4096
    ) as listening:
        print("listening", flush=True)
        await listening.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
