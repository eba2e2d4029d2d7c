"""Drive a closed loop: warm up, ramp, hold for the window, follow every request of the window to its end."""

from __future__ import annotations

import asyncio
import gc
import itertools
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from time import perf_counter_ns

import aiohttp
import numpy as np

from loadgen import client
from loadgen.record import Record
from loadgen.schedule import User

PROGRESS_S = 5.0
LAG_STEP_S = 0.02
# A user whose request failed waits before the next, twice as long each time in a row: no hot loop against a sick server.
PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0
# A request belongs to the window by the moment it is sent, which is a little later than the moment it is begun.
EARLY_NS = 1_000_000_000


@dataclass(frozen=True)
class Target:
    """Where requests go: one URL, and one body for each prompt."""

    url: str
    bodies: list[bytes]
    timeout_s: float


@dataclass
class Course:
    """How a run went, by the client's own clock (perf_counter_ns), and what the client itself added.

    The clock starts with the first user; the window starts when all users are in, and ends before the first one stops.
    lag_ms is how late the event loop came back from short sleeps inside the window; cpu_share is this process's CPU time
    over the window's length, in cores.
    """

    clock_ns: int
    window_start_ns: int
    window_end_ns: int
    users: int
    lag_ms: dict[str, float] = field(default_factory=dict)
    cpu_share: float = 0.0
    warmup_s: float = 0.0


class Run:
    """The state that users share: who is active, which requests of the window are still open, what progress says."""

    def __init__(self, target: Target, put: Callable[[Record], None]):
        self.target, self.put = target, put
        self.active = self.finished = self.failed = 0
        self.open_in_window = 0
        self.window_start_ns = self.window_end_ns = 0
        self.over = asyncio.Event()
        self.recent: deque[tuple[int, int]] = deque(maxlen=4096)

    async def request(self, session: aiohttp.ClientSession, record: Record) -> None:
        """Send one and hand its record over, even when cancelled half-way."""
        started = perf_counter_ns()
        counts = self.window_start_ns - EARLY_NS <= started < self.window_end_ns
        self.open_in_window += counts
        try:
            await client.send(session, self.target.url, self.target.bodies[record.prompt], record, self.target.timeout_s)
        finally:
            self.open_in_window -= counts
            self.note(record)
            self.put(record)
        if perf_counter_ns() >= self.window_end_ns and self.open_in_window == 0:
            self.over.set()

    def note(self, record: Record) -> None:
        """For the progress line only: events by counting bytes, first read as TTFT."""
        self.finished += 1
        self.failed += record.outcome != "complete"
        if record.read_ns and record.sent_ns:
            self.recent.append((record.body.count(b"\ndata:"), record.read_ns[0] - record.sent_ns))

    async def user(self, session: aiohttp.ClientSession, user: User, clock_ns: int, rest_s: float) -> None:
        await sleep_until(clock_ns + user.start_ns)
        self.active += 1
        scheduled_ns, failures = clock_ns + user.start_ns, 0
        for turn, prompt in enumerate(itertools.cycle(user.prompts)):
            record = Record(user.number, turn, "load", prompt, scheduled_ns)
            await self.request(session, record)
            failures = failures + 1 if record.outcome != "complete" else 0
            pause = rest_s if not failures else max(rest_s, min(LONGEST_PAUSE_S, PAUSE_S * 2 ** (failures - 1)))
            scheduled_ns = perf_counter_ns() + round(pause * 1e9)
            await sleep_until(scheduled_ns)


async def sleep_until(moment_ns: int) -> None:
    await asyncio.sleep(max(0, moment_ns - perf_counter_ns()) / 1e9)


async def warm_up(session: aiohttp.ClientSession, run: Run, users: int, requests: int) -> None:
    """Send `requests` with as many at a time as there will be users."""
    numbers = iter(range(requests))

    async def worker(user: int) -> None:
        for number in numbers:
            record = Record(user, number, "warmup", number % len(run.target.bodies), perf_counter_ns())
            await run.request(session, record)

    await asyncio.gather(*(worker(user) for user in range(min(users, requests))))


async def closed_loop(
    target: Target,
    users: list[User],
    warmup_requests: int,
    ramp_s: float,
    window_s: float,
    rest_s: float,
    put: Callable[[Record], None],
    progress: Callable[[str], None],
    watch: Callable[[], Awaitable[None]],
) -> Course:
    """Run the users' schedule and give its course; every request's record goes to `put`.

    `watch` runs beside the load and ends it by raising, for example when the server has died; what it raises is raised
    here, after the records of the requests under way have been put.
    """
    run = Run(target, put)
    async with client.session() as session:
        watching = asyncio.ensure_future(watch())
        warming = perf_counter_ns()
        await first_of(warm_up(session, run, len(users), warmup_requests), watching)
        warmed = perf_counter_ns()
        gc.collect()
        gc.freeze()
        clock_ns = perf_counter_ns()
        run.active = run.finished = run.failed = 0
        run.window_start_ns = clock_ns + round(ramp_s * 1e9)
        run.window_end_ns = run.window_start_ns + round(window_s * 1e9)
        course = Course(clock_ns, run.window_start_ns, run.window_end_ns, len(users), warmup_s=(warmed - warming) / 1e9)
        tasks = [asyncio.ensure_future(run.user(session, user, clock_ns, rest_s)) for user in users]
        helpers = [asyncio.ensure_future(tell(run, clock_ns, progress)), asyncio.ensure_future(measure_self(course))]
        try:
            await first_of(until_over(run), watching, *tasks)
        finally:
            for task in [*tasks, *helpers, watching]:
                task.cancel()
            await asyncio.gather(*tasks, *helpers, watching, return_exceptions=True)
            gc.unfreeze()
    return course


async def first_of(work: Awaitable[None], *others: asyncio.Future[None]) -> None:
    """Wait for `work`, unless one of the others ends by raising first; then raise that."""
    working = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait([working, *others], return_when=asyncio.FIRST_COMPLETED)
        for future in done:
            future.result()
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def until_over(run: Run) -> None:
    """Wait for the end of the window and of every request started in it; the others keep up the load meanwhile."""
    await sleep_until(run.window_end_ns)
    while run.open_in_window:
        run.over.clear()
        await run.over.wait()


async def tell(run: Run, clock_ns: int, progress: Callable[[str], None]) -> None:
    """One line each five seconds."""
    for step in itertools.count(1):
        await sleep_until(clock_ns + round(step * PROGRESS_S * 1e9))
        recent = [run.recent.popleft() for _ in range(len(run.recent))]
        rate = sum(events for events, _ in recent) / PROGRESS_S
        ttft = f"{np.median([first for _, first in recent]) / 1e6:.0f} ms" if recent else "-"
        phase = "ramp" if perf_counter_ns() < run.window_start_ns else "window" if perf_counter_ns() <= run.window_end_ns else "drain"
        progress(f"{step * PROGRESS_S:4.0f} s  {phase:6}  users {run.active}  tokens/s ~{rate:.0f}  TTFT ~{ttft}  requests {run.finished}  errors {run.failed}")


async def measure_self(course: Course) -> None:
    """Fill in the event loop's lag and this process's CPU share, over the window."""
    await sleep_until(course.window_start_ns)
    lags, cpu = [], time.process_time()
    while (now := perf_counter_ns()) < course.window_end_ns:
        await asyncio.sleep(LAG_STEP_S)
        lags.append((perf_counter_ns() - now) / 1e6 - LAG_STEP_S * 1e3)
        course.cpu_share = (time.process_time() - cpu) * 1e9 / (perf_counter_ns() - course.window_start_ns)
        if len(lags) % 50 == 0 or now + LAG_STEP_S * 2e9 > course.window_end_ns:
            course.lag_ms = {"p50": float(np.percentile(lags, 50)), "p99": float(np.percentile(lags, 99)), "max": max(lags)}
