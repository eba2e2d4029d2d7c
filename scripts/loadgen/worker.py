"""One process of the load generator: its share of the users, on the clock that all processes of the machine share.

    python -m loadgen.worker

It is told in lines of JSON on standard input: first the 'file' with its job and the conversations, its 'number' and where its
'records' go; then 'clock_ns', which starts the load, and 'stop', which ends it. It tells 'warm', 'tick' and 'drained' on
standard output. When its standard input ends nobody is left to tell, and it ends too.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import itertools
import json
import resource
import signal
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
import uvloop

from loadgen import client, conversation, record
from loadgen.client import Connection
from loadgen.conversation import Template
from loadgen.record import Record
from loadgen.schedule import Shape, User, draw

LAG_STEP_S = 0.02
# Connections are opened so long before their first request, so that connecting delays no request.
AHEAD_NS = 250_000_000
# A user whose request failed waits before the next, twice as long each time in a row: no hot loop against a sick server.
PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0
# A request belongs to the window by the moment it is sent, which is a little later than the moment it is begun.
EARLY_NS = 1_000_000_000
WARMING_AT_ONCE = 64
# Answers that a tick looks into.
SAMPLE = 64
# A full disk is told to the parent by the exit code.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Job:
    """What every worker is told alike."""

    host: str
    port: int
    path: str
    timeout_s: float
    shape: Shape
    seed: int
    rest_s: float
    warmup_requests: int
    workers: int
    tick_s: float = 5.0


class Load:
    """The state that the users of a process share: who is active, which requests of the window are open, what a tick tells."""

    def __init__(
        self, job: Job, conversations: list[list[Template]], put: Callable[[Record], None]
    ):
        self.job, self.conversations, self.put = job, conversations, put
        self.active = self.finished = self.failed = self.answered = self.open_in_window = 0
        self.clock_ns = self.window_start_ns = self.window_end_ns = 0
        self.closing = asyncio.Event()
        self.receiver = client.Receiver()
        self.recent: deque[Record] = deque(maxlen=SAMPLE)

    def start(self, clock_ns: int) -> None:
        self.active = self.finished = self.failed = 0
        self.clock_ns = clock_ns
        self.window_start_ns = clock_ns + round(self.job.shape.ramp_s * 1e9)
        self.window_end_ns = self.window_start_ns + round(self.job.shape.window_s * 1e9)

    def connection(self) -> Connection:
        return Connection(self.receiver, self.job.host, self.job.port)

    async def request(self, connection: Connection, body: bytes, made: Record) -> None:
        """Send one and hand its record over, even when cancelled half-way."""
        started = perf_counter_ns()
        counts = self.window_start_ns - EARLY_NS <= started < self.window_end_ns
        self.open_in_window += counts
        self.active += 1
        try:
            await connection.send(
                client.post(self.job.host, self.job.port, self.job.path, body),
                made,
                self.job.timeout_s,
            )
        finally:
            self.active -= 1
            self.open_in_window -= counts
            self.finished += 1
            self.failed += made.outcome != "complete"
            if made.outcome == "complete":
                self.answered += 1
                self.recent.append(made)
            self.put(made)
        if perf_counter_ns() >= self.window_end_ns and self.open_in_window == 0:
            self.closing.set()

    async def user(self, user: User) -> None:
        scheduled_ns = self.clock_ns + user.start_ns
        connection, failures, sequence = self.connection(), 0, itertools.count()
        try:
            await sleep_until(scheduled_ns - AHEAD_NS)
            await opened(connection)
            for prompt in itertools.cycle(user.prompts) if user.again else user.prompts:
                answers: list[str] = []
                for turn, template in enumerate(self.conversations[prompt]):
                    await sleep_until(scheduled_ns)
                    made = Record(user.number, next(sequence), prompt, turn, "load", scheduled_ns)
                    await self.request(connection, conversation.fill(template, answers), made)
                    failures = failures + 1 if made.outcome != "complete" else 0
                    pause_s = (
                        self.job.rest_s
                        if not failures
                        else max(
                            self.job.rest_s, min(LONGEST_PAUSE_S, PAUSE_S * 2 ** (failures - 1))
                        )
                    )
                    scheduled_ns = perf_counter_ns() + round(pause_s * 1e9)
                    if failures:  # the rest of a conversation hangs on the answer that did not come
                        break
                    if turn + 1 < len(self.conversations[prompt]):
                        answers.append(conversation.answer(bytes(made.wire)))
        finally:
            connection.close()

    async def arrive(self, users: list[User]) -> None:
        """Let each user begin in time; raises what one of them raised."""
        async with asyncio.TaskGroup() as group:
            for user in users:
                await sleep_until(self.clock_ns + user.start_ns - 2 * AHEAD_NS)
                group.create_task(self.user(user))

    async def warm_up(self, numbers: Iterator[int], at_once: int) -> None:
        """Send requests, `at_once` at a time, each the first turn of a conversation."""

        async def one(user: int) -> None:
            connection = self.connection()
            try:
                for number in numbers:
                    prompt = number % len(self.conversations)
                    made = Record(user, number, prompt, 0, "warmup", perf_counter_ns())
                    await self.request(
                        connection, conversation.fill(self.conversations[prompt][0], []), made
                    )
            finally:
                connection.close()

        await asyncio.gather(*(one(user) for user in range(at_once)))

    async def drained(self) -> None:
        """Wait for the end of the window and of every request sent in it; the others keep up the load meanwhile."""
        await sleep_until(self.window_end_ns)
        while self.open_in_window:
            self.closing.clear()
            await self.closing.wait()

    def tick(self) -> dict[str, Any]:
        """For the progress line only, from a sample of the latest answers: events by counting bytes, the first read with a body as TTFT."""
        sample = list(self.recent)
        told = {
            "active": self.active,
            "finished": self.finished,
            "failed": self.failed,
            "answers": self.answered,
            "events": 0.0,
            "ttft_ms": None,
        }
        if sample and self.answered:
            told["events"] = (
                self.answered * sum(one.wire.count(b"data:") for one in sample) / len(sample)
            )
            told["ttft_ms"] = float(np.median([first_ms(one) for one in sample]))
        self.answered = 0
        self.recent.clear()
        return told


def first_ms(made: Record) -> float:
    """From sending to the first read that brought more than the head."""
    head = made.wire.find(b"\r\n\r\n") + 4
    read = int(np.searchsorted(np.cumsum(made.read_bytes), head, side="right"))
    assert made.sent_ns
    return float(made.read_ns[min(read, len(made.read_bytes) - 1)] - made.sent_ns) / 1e6


async def opened(connection: Connection) -> None:
    """Open ahead of the request; where that fails, the request will tell."""
    try:
        await connection.open()
    except OSError:
        connection.close()


async def sleep_until(moment_ns: int) -> None:
    while (left := moment_ns - perf_counter_ns()) > 0:
        await asyncio.sleep(left / 1e9)


async def measure_self(load: Load) -> dict[str, Any]:
    """How late the event loop came back from short sleeps inside the window (ms), and this process's CPU time over it, in cores."""
    await sleep_until(load.window_start_ns)
    lags, started, cpu = [], perf_counter_ns(), time.process_time()
    while (now := perf_counter_ns()) < load.window_end_ns:
        await asyncio.sleep(LAG_STEP_S)
        lags.append((perf_counter_ns() - now) / 1e6 - LAG_STEP_S * 1e3)
    cpu_share = (time.process_time() - cpu) * 1e9 / (perf_counter_ns() - started)
    return {
        "lag_ms": {
            "p50": float(np.percentile(lags, 50)),
            "p99": float(np.percentile(lags, 99)),
            "max": max(lags),
        },
        "cpu_share": cpu_share,
    }


async def work(
    load: Load, number: int, told: asyncio.Queue[dict[str, Any]], tell: Callable[[str, Any], None]
) -> None:
    """Warm up, wait for the clock, run the load, wait for the word to stop."""
    job = load.job
    users = draw(job.shape, len(load.conversations), job.timeout_s, job.seed)
    share = users[number :: job.workers]
    started = perf_counter_ns()
    at_once = min(job.shape.users or WARMING_AT_ONCE, job.warmup_requests)
    await load.warm_up(
        iter(range(number, job.warmup_requests, job.workers)), -(-(at_once - number) // job.workers)
    )
    tell("warm", (perf_counter_ns() - started) / 1e9)
    gc.collect()
    gc.freeze()
    # Requests leave no cycles behind (loadgen.wire.Response.release), so there is nothing to collect.
    gc.disable()
    load.start((await told.get())["clock_ns"])

    async def ticks() -> None:
        for step in itertools.count(1):
            await sleep_until(load.clock_ns + round(step * job.tick_s * 1e9))
            tell("tick", load.tick())

    async def watched() -> None:
        measured = asyncio.ensure_future(measure_self(load))
        await load.drained()
        tell(
            "drained",
            await measured
            | {name: value for name, value in asdict(client.counts).items() if name != "offset_ns"},
        )

    await until_first(told.get(), forever(load.arrive(share)), forever(ticks()), forever(watched()))


async def forever(work: Awaitable[None]) -> None:
    """Do the work and then wait: only what it raises ends it."""
    await work
    await asyncio.Event().wait()


async def until_first(over: Coroutine[Any, Any, Any], *others: Coroutine[Any, Any, None]) -> None:
    """Wait for `over`, unless one of the others raises first; then cancel what goes on."""
    tasks = [asyncio.ensure_future(one) for one in (over, *others)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def serve() -> None:
    lines = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    first = json.loads(await lines.readline())
    given, *conversations = [
        json.loads(line) for line in Path(first["file"]).read_text().splitlines()
    ]
    job = Job(**(given | {"shape": Shape(**given["shape"])}))
    told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def listen() -> None:
        heard: dict[str, Any] = {}
        while line := await lines.readline():
            heard = json.loads(line)
            told.put_nowait(heard)
        if "stop" not in heard:
            raise EOFError("nobody is left to tell")
        await (
            asyncio.Event().wait()
        )  # the word to stop and the end of the pipe come together; the word counts

    def tell(what: str, value: Any) -> None:
        print(json.dumps({what: value}), flush=True)

    with record.writing(Path(first["records"])) as writer:

        async def sound() -> None:
            while not writer.failed:
                await asyncio.sleep(1)
            raise writer.failed

        await until_first(
            work(Load(job, conversations, writer.put), first["number"], told, tell),
            listen(),
            sound(),
        )


def main() -> None:
    # Ctrl-C reaches the whole process group; the word to stop comes from the parent, or the end of its pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        uvloop.run(serve())
    except EOFError as error:
        sys.exit(str(error))
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        sys.exit(error.errno)


if __name__ == "__main__":
    main()
