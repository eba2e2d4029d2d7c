"""Drive a load: worker processes on one clock warm up, ramp, hold for the window, and follow every request of it to its end."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from loadgen import record
from loadgen.conversation import Template
from loadgen.schedule import Shape
from loadgen.worker import NO_SPACE, Job, forever, until_first

SCRIPTS = Path(__file__).resolve().parent.parent
# Streams for which one process is enough on any machine (benchmarks/loadgen), and the cores that a further one should find.
STREAMS_A_WORKER = 512
CORES_A_WORKER = 4
# How long an answer is taken to last where the number of streams follows from a rate.
ANSWER_S = 10.0
# From the word to start until the clock does: connections are opened in it.
LEAD_NS = 500_000_000
GRACE_S = 20.0


class WorkerDied(RuntimeError):
    """A worker process ended before it was told to: a defect of the load generator, or the machine killed it."""


@dataclass
class Course:
    """How a run went, by the client's own clock (perf_counter_ns), and what the client itself added.

    The clock starts with the first user; the window starts when all users are in, and ends before the first one stops.
    lag_ms        how late the event loops came back from short sleeps inside the window: p50, p99 and max of the worst process
    cpu_shares    CPU time of each process over the window's length, in cores
    sockets, retries, unstamped, clock_steps    loadgen.client.Counts, all processes together
    """

    clock_ns: int
    window_start_ns: int
    window_end_ns: int
    warmup_s: float
    lag_ms: dict[str, float]
    cpu_shares: list[float]
    sockets: int
    retries: int
    unstamped: int
    clock_steps: int


def workers_for(shape: Shape, cores: int) -> int:
    """How many processes a load needs, as far as there are cores to run them beside a server."""
    if shape.users is not None:
        streams: float = shape.users
    elif shape.rate is not None:
        streams = shape.rate * ANSWER_S
    else:
        arrivals = shape.arrivals_s or ()
        streams = len(arrivals) / max(1.0, arrivals[-1]) * ANSWER_S if arrivals else 1
    return max(1, min(-(-int(streams) // STREAMS_A_WORKER), cores // CORES_A_WORKER))


class Worker:
    """One worker process, seen from here."""

    def __init__(self, process: asyncio.subprocess.Process, part: Path):
        self.process, self.part = process, part

    async def hear(self) -> dict[str, Any]:
        assert self.process.stdout
        line = await self.process.stdout.readline()
        if not line:
            raise self.died(await self.process.wait())
        said: dict[str, Any] = json.loads(line)
        return said

    def died(self, code: int) -> Exception:
        """What its exit code means: a full disk is an OSError, as if this process had met it."""
        if code in NO_SPACE:
            return OSError(code, os.strerror(code), str(self.part))
        return WorkerDied(f"a process of the load generator ended with code {code}")

    def tell(self, what: dict[str, Any]) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(what).encode() + b"\n")


def surroundings() -> dict[str, str]:
    """The environment of a process that runs a module of ours: this one's, with our folder first on its path."""
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(SCRIPTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    }


@asynccontextmanager
async def started(
    job: Job, conversations: Sequence[list[Template]], parts: Sequence[Path]
) -> AsyncIterator[list[Worker]]:
    """The workers of a job, one for each file of records; told to stop at the end, and killed if they do not."""
    workers: list[Worker] = []
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.writelines(json.dumps(one) + "\n" for one in (asdict(job), *conversations))
        file.flush()
        environment = surroundings()
        try:
            for number, part in enumerate(parts):
                command = [sys.executable, "-m", "loadgen.worker"]
                workers.append(
                    Worker(
                        await asyncio.create_subprocess_exec(
                            *command,
                            stdin=asyncio.subprocess.PIPE,
                            stdout=asyncio.subprocess.PIPE,
                            env=environment,
                        ),
                        part,
                    )
                )
                workers[-1].tell({"file": file.name, "number": number, "records": str(part)})
            yield workers
            for worker in workers:
                worker.tell({"stop": True})
            await asyncio.wait_for(
                asyncio.gather(*(worker.process.communicate() for worker in workers)), GRACE_S
            )
            for worker in workers:
                if worker.process.returncode:
                    raise worker.died(worker.process.returncode)
        finally:
            for worker in workers:
                if worker.process.returncode is None:
                    await ended(worker.process)


async def ended(process: asyncio.subprocess.Process) -> None:
    """Close the pipe, which ends a worker with its records written; kill one that stays."""
    assert process.stdin
    process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), GRACE_S)
    except TimeoutError:
        process.kill()
        await process.wait()


async def run(
    job: Job,
    conversations: Sequence[list[Template]],
    records: Path,
    progress: Callable[[str], None],
    watch: Callable[[], Awaitable[None]],
) -> Course:
    """Run a load and give its course; every request's record goes to the file `records`, also where the run fails.

    `watch` runs beside the load and ends it by raising, for example when the server has died; what it raises is raised here.
    """
    parts = [records.with_name(f"{records.name}.{number}") for number in range(job.workers)]
    said: list[Course] = []

    async def whole() -> None:
        async with started(job, conversations, parts) as workers:
            said.append(await conduct(job, workers, progress))

    try:
        await until_first(whole(), forever(watch()))
    finally:
        record.merge(parts, records)
    return said[0]


async def conduct(job: Job, workers: list[Worker], progress: Callable[[str], None]) -> Course:
    """Start the clock when all are warm, and pass on what they tell until all have seen their requests end."""
    warm = [(await worker.hear())["warm"] for worker in workers]
    clock_ns = perf_counter_ns() + LEAD_NS
    window_start_ns = clock_ns + round(job.shape.ramp_s * 1e9)
    window_end_ns = window_start_ns + round(job.shape.window_s * 1e9)
    for worker in workers:
        worker.tell({"clock_ns": clock_ns})
    ticks: dict[int, dict[int, dict[str, Any]]] = {}

    async def follow(number: int) -> dict[str, Any]:
        for step in range(1, sys.maxsize):
            heard = await workers[number].hear()
            if "drained" in heard:
                drained: dict[str, Any] = heard["drained"]
                return drained
            told = ticks.setdefault(step, {})
            told[number] = heard["tick"]
            if len(told) == len(workers):
                now_s = step * job.tick_s
                phase = (
                    "ramp"
                    if now_s < job.shape.ramp_s
                    else "window"
                    if now_s <= job.shape.ramp_s + job.shape.window_s
                    else "drain"
                )
                progress(line(now_s, phase, list(ticks.pop(step).values()), job.tick_s))
        raise AssertionError("unreachable")

    ends = await asyncio.gather(*(follow(number) for number in range(len(workers))))
    return Course(
        clock_ns,
        window_start_ns,
        window_end_ns,
        warmup_s=max(warm),
        lag_ms={name: max(end["lag_ms"][name] for end in ends) for name in ("p50", "p99", "max")},
        cpu_shares=[end["cpu_share"] for end in ends],
        **{
            name: sum(end[name] for end in ends)
            for name in ("sockets", "retries", "unstamped", "clock_steps")
        },
    )


def line(now_s: float, phase: str, ticks: list[dict[str, Any]], tick_s: float) -> str:
    """What progress says of the last seconds, from the ticks of all workers."""
    active, finished, failed, events, answers = (
        sum(tick[name] for tick in ticks)
        for name in ("active", "finished", "failed", "events", "answers")
    )
    ttft = (
        f"{sum(tick['ttft_ms'] * tick['answers'] for tick in ticks if tick['answers']) / answers:.0f} ms"
        if answers
        else "-"
    )
    return f"{now_s:4.0f} s  {phase:6}  in flight {active}  tokens/s ~{events / tick_s:.0f}  TTFT ~{ttft}  requests {finished}  errors {failed}"
