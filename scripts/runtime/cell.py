"""Measure one cell against a running server: warm up, drive its load, watch server and machine, keep what came back."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import psutil
import uvloop

import backends
import runtime
from host.sampling import sampling
from loadgen import client, conversation, drive, record
from loadgen.schedule import Shape
from loadgen.worker import Job
from pipeline.failure import Failure
from pipeline.results import part
from pipeline.spec import Cell
from runtime import Server
from runtime.server import Prepared, keep

log = logging.getLogger(__name__)
WATCH_S = 0.5
Conversations = list[list[conversation.Template]]


@dataclass(frozen=True)
class Offer:
    """A cell's load as the load generator takes it: the job, and of each prompt the bodies of its turns."""

    job: Job
    conversations: Conversations
    asked_tokens: list[int]


def offer(cell: Cell, prompts: list[dict[str, Any]], ready: Prepared) -> Offer:
    """Failure `no_prompts` where a trace is over before the window is."""
    shape = shape_of(cell, prompts)
    path, bodies = conversations(cell, prompts, ready.settings)
    job = Job(
        "127.0.0.1",
        ready.port,
        path,
        timeout_s=cell.load.request_timeout_s,
        shape=shape,
        seed=seed_of(cell),
        rest_s=cell.load.rest_s,
        warmup_requests=cell.load.warmup_requests,
        workers=cell.load.workers or drive.workers_for(shape, psutil.cpu_count() or 1),
    )
    longest = cell.workload.max_tokens
    return Offer(
        job, bodies, [min(longest, prompt.get("max_tokens", longest)) for prompt in prompts]
    )


def seed_of(cell: Cell) -> int:
    """Each load and trial draws prompts of its own, alike for all backends: what one asked does not prepare the next."""
    of = (cell.seed, cell.trial, cell.load_path)
    return int(hashlib.sha256(repr(of).encode()).hexdigest()[:8], 16)


def shape_of(cell: Cell, prompts: list[dict[str, Any]]) -> Shape:
    """The load of a cell; Failure `no_prompts` where its trace is over before the window is."""
    load, offered = cell.load, cell.offered
    if offered.kind == "users":
        return Shape(load.ramp_s, load.window_s, users=int(offered.value))
    if offered.kind == "rate":
        return Shape(
            load.ramp_s,
            load.window_s,
            rate=offered.value,
            arrivals=load.arrivals,
            burstiness=load.burstiness,
        )
    moments = tuple(prompt["at_s"] / offered.value for prompt in prompts)
    if moments[-1] < load.ramp_s + load.window_s:
        raise Failure(
            "no_prompts",
            f"The trace has {len(prompts)} requests that fit and is over after {moments[-1]:.0f} s at {offered.value:g} "
            f"times its speed; ramp and window last {load.ramp_s + load.window_s:g} s.",
            "Shorten load.window_s, lower the speed, raise the prompts' count, or widen their min_tokens and max_tokens.",
        )
    return Shape(load.ramp_s, load.window_s, arrivals_s=moments)


def conversations(
    cell: Cell, prompts: list[dict[str, Any]], serve: backends.Serve
) -> tuple[str, Conversations]:
    """The path of the requests, and for each prompt the body of each of its turns, with slots for the answers before it."""
    adapter, workload = backends.load(cell.backend.adapter), cell.workload
    forced = workload.output_length == "forced"
    path, made = "", []
    for prompt in prompts:
        longest = min(workload.max_tokens, prompt.get("max_tokens", workload.max_tokens))
        turns: list[conversation.Template] = []
        earlier: list[str] = []
        for turn, text in enumerate(prompt["turns"]):
            ask = backends.Ask(
                text,
                tuple(earlier),
                workload.system_prompt,
                longest,
                forced,
                workload.temperature,
                cell.seed,
            )
            path, body = adapter.request(ask, serve)
            turns.append(conversation.template(body))
            earlier += [text, conversation.slot(turn)]
        made.append(turns)
    return path, made


async def first_answer(offered: Offer) -> float | None:
    """Seconds that one request takes right after the server is ready: what a cold server costs its first user. None if it failed."""
    job, first = offered.job, offered.conversations[0][0]
    sent = record.Record(0, 0, 0, 0, "first", perf_counter_ns())
    receiver = client.Receiver()
    connection = client.Connection(receiver, job.host, job.port)
    body = client.post(job.host, job.port, job.path, conversation.fill(first, []))
    await connection.send(body, sent, job.timeout_s)
    connection.close()
    receiver.close()
    if sent.outcome != "complete":
        log.warning("the first request failed: %s: %s", sent.outcome, sent.error)
        return None
    assert sent.done_ns
    return round((sent.done_ns - sent.scheduled_ns) / 1e9, 3)


def measure(
    cell: Cell,
    ready: Prepared,
    server: Server,
    offered: Offer,
    folder: Path,
    result: dict[str, Any],
) -> None:
    """Drive the load and fill `result`, which becomes cell.json, as far as it goes. Failure where the cell has failed."""
    adapter, records = backends.load(cell.backend.adapter), folder / "records.arrow"
    name = f"{cell.backend.name}/{cell.offered.name}"
    for path in folder.glob("records.arrow*"):
        path.unlink()

    async def watch() -> None:
        while True:
            runtime.check(server, "under load")
            await asyncio.sleep(WATCH_S)

    async def drive_load() -> drive.Course:
        return await drive.run(
            offered.job,
            offered.conversations,
            records,
            lambda line: log.info("%s  %s", name, line),
            watch,
        )

    try:
        with sampling(server.tree, tuple(gpu["uuid"] for gpu in ready.gpus)) as samples:
            course = uvloop.run(drive_load())
    finally:
        if records.exists():
            result["records"] = {"path": records.name, **part(records)}
    result |= {"course": asdict(course), "telemetry": samples}
    if adapter.METRICS:
        asyncio.run(keep(ready.url + adapter.METRICS, folder / "metrics.txt"))
    result["realised"] = adapter.realised(
        server.log_file.read_text(errors="replace"), result["info"]
    )
    check_answered(records)


def check_answered(records: Path) -> None:
    """Failure `no_answer` if not one request of the load was completed."""
    outcomes: Counter[str] = Counter()
    errors: dict[str, str] = {}
    for batch in record.batches(records):
        columns = batch.select(["phase", "outcome", "error"]).to_pydict()
        for phase, outcome, error in zip(
            columns["phase"], columns["outcome"], columns["error"], strict=True
        ):
            if phase == "load":
                outcomes[outcome] += 1
                errors.setdefault(outcome, error)
    if "complete" in outcomes:
        return
    [(outcome, _)] = outcomes.most_common(1) or [("none was sent", 0)]
    most = f"{outcome}: {errors[outcome]}" if outcome in errors else outcome
    reason = (
        f"The server was ready but completed none of {outcomes.total()} requests; most often {most}"
    )
    raise Failure("no_answer", reason, "See the server's log.")


def rest(server: Server, seconds: float) -> dict[str, Any]:
    """Wait between two cells; gives {seconds, server_cores}: what the server still did, None where it cannot be told."""
    before, started = cpu_seconds(server), time.monotonic()
    time.sleep(seconds)
    after, took = cpu_seconds(server), time.monotonic() - started
    cores = (
        None if before is None or after is None or not took else round((after - before) / took, 2)
    )
    return {"seconds": seconds, "server_cores": cores}


def cpu_seconds(server: Server) -> float | None:
    try:
        times = [process.cpu_times() for process in server.tree()]
    except psutil.Error:
        return None
    return sum(one.user + one.system for one in times) if times else None
