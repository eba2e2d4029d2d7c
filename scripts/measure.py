"""Measure one cell: start its server, wait, warm up, load it, watch the machine, stop it.

Writes cell.json (the output) and beside it records.arrow, every request's raw facts. A classified failure is written
into cell.json as the cell's outcome; the exit code is 0 all the same.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from dataclasses import asdict
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import aiohttp
import psutil
import uvloop

import backends
import job
import runtime
import serving
import store
import telemetry
from failure import Failure
from loadgen import client, conversation, drive, record
from loadgen.schedule import Shape
from loadgen.worker import Job
from manifest import Manifest, sha256, write_json
from metrics.records import read
from runtime import Server
from spec import Cell, from_json

log = logging.getLogger(__name__)
WATCH_S = 0.5
RESERVE_BYTES = 32 << 10


async def keep(url: str, target: Path) -> None:
    """What the server's own metrics say at the end of the load, beside its log; it is asked once, so as not to disturb it."""
    try:
        async with aiohttp.ClientSession(trust_env=False, timeout=aiohttp.ClientTimeout(total=10)) as session, session.get(url) as response:
            target.write_bytes(await response.read())
    except (aiohttp.ClientError, TimeoutError) as error:
        log.info("%s: %s", url, error)


async def first_answer(work: Job, first: conversation.Template) -> float | None:
    """Seconds that one request takes right after the server is ready: what a cold server costs its first user. None if it failed."""
    probe = record.Record(0, 0, 0, 0, "probe", perf_counter_ns())
    receiver = client.Receiver()
    connection = client.Connection(receiver, work.host, work.port)
    await connection.send(client.post(work.host, work.port, work.path, conversation.fill(first, [])), probe, work.timeout_s)
    connection.close()
    receiver.close()
    if probe.outcome != "complete":
        log.warning("the first request failed: %s: %s", probe.outcome, probe.error)
        return None
    assert probe.done_ns
    return round((probe.done_ns - probe.scheduled_ns) / 1e9, 3)


def shape(cell: Cell, prompts: list[dict[str, Any]]) -> Shape:
    """The load of a cell; Failure `no_prompts` where its trace is over before the window is."""
    load, offered = cell.load, cell.offered
    if offered.kind == "users":
        return Shape(load.ramp_s, load.window_s, users=int(offered.value))
    if offered.kind == "rate":
        return Shape(load.ramp_s, load.window_s, rate=offered.value, arrivals=load.arrivals, burstiness=load.burstiness)
    moments = tuple(prompt["at_s"] / offered.value for prompt in prompts)
    if moments[-1] < load.ramp_s + load.window_s:
        raise Failure(
            "no_prompts",
            f"The trace has {len(prompts)} requests that fit and is over after {moments[-1]:.0f} s at {offered.value:g} times its speed; ramp and window last {load.ramp_s + load.window_s:g} s.",
            "Shorten load.window_s, lower the speed, raise the prompts' count, or widen their min_tokens and max_tokens.",
        )
    return Shape(load.ramp_s, load.window_s, arrivals_s=moments)


def conversations(cell: Cell, prompts: list[dict[str, Any]], serve: backends.Serve) -> tuple[str, list[list[conversation.Template]]]:
    """The path of the requests, and for each prompt the body of each of its turns, with slots for the answers before it."""
    adapter, workload = backends.load(cell.backend.adapter), cell.workload
    path, made = "", []
    for prompt in prompts:
        longest = min(workload.max_tokens, prompt.get("max_tokens", workload.max_tokens))
        turns: list[conversation.Template] = []
        earlier: list[str] = []
        for turn, text in enumerate(prompt["turns"]):
            ask = backends.Ask(text, tuple(earlier), workload.system_prompt, longest, workload.output_length == "forced", workload.temperature, cell.seed)
            path, body = adapter.request(ask, serve)
            turns.append(conversation.template(body))
            earlier += [text, conversation.slot(turn)]
        made.append(turns)
    return path, made


async def load(cell: Cell, server: Server, work: Job, asked: list[list[conversation.Template]], records: Path, gpus: list[dict[str, Any]]) -> dict[str, Any]:
    """Wait for the server and drive the load; gives what cell.json says of it."""
    adapter, url = backends.load(cell.backend.adapter), f"http://{work.host}:{work.port}"
    ready_s = await serving.until_ready(server, url + adapter.READY, cell.server.start_timeout_s)
    log.info("%s: ready after %.1f s", cell.path, ready_s)
    info = await serving.told(url, adapter.INFO)
    answer_s = await first_answer(work, asked[0][0])

    async def watch() -> None:
        while True:
            runtime.check(server, "under load")
            await asyncio.sleep(WATCH_S)

    with telemetry.sampling(server.tree, tuple(gpu["uuid"] for gpu in gpus)) as samples:
        course = await drive.run(work, asked, records, lambda line: log.info("%s/%s  %s", cell.backend.name, cell.offered.name, line), watch)
    if adapter.METRICS:
        await keep(url + adapter.METRICS, server.log_file.with_name("metrics.txt"))
    realised = adapter.realised(server.log_file.read_text(errors="replace"), info)
    return {"ready_s": round(ready_s, 3), "first_answer_s": answer_s, "course": asdict(course), "telemetry": samples, "info": info, "realised": realised}


def answered(records: Path) -> None:
    """Failure `no_answer` if not one request of the load was completed."""
    table = read(records)
    outcomes = table[table.phase == "load"].groupby("outcome").error.agg(["size", "first"]).sort_values("size", ascending=False)
    if "complete" not in outcomes.index:
        what = f"{outcomes.index[0]}: {outcomes['first'].iloc[0]}" if len(outcomes) else "none was sent"
        raise Failure("no_answer", f"The server was ready but completed none of {int(outcomes['size'].sum())} requests; most often {what}", "See the server's log.")


def measure(cell: Cell, args: Any, result: dict[str, Any]) -> None:
    """Fill `result` as far as it goes; raises Failure when the cell has failed."""
    engine, environment, prompts = (job.usable(Manifest.load(path)) for path in (args.engine, args.environment, args.prompts))
    lines = [json.loads(line) for line in prompts.file("prompts").read_text().splitlines()]
    result |= {"form": engine.facts["form"], "prompts": prompts.facts, "versions": serving.versions(environment, cell.backend.adapter), "random": bool(engine.facts.get("random"))}
    ready = serving.prepare(cell.served, engine, environment, args.spec["engine"], args.log.with_name("server.log"), cell.path)
    result |= ready.facts
    records = args.output.with_name("records.arrow")
    records.unlink(missing_ok=True)
    offered = shape(cell, lines)
    workers = cell.load.workers or drive.workers_for(offered, psutil.cpu_count() or 1)
    path, asked = conversations(cell, lines, ready.settings)
    result["asked_tokens"] = [min(cell.workload.max_tokens, line.get("max_tokens", cell.workload.max_tokens)) for line in lines]
    work = Job(
        "127.0.0.1",
        ready.port,
        path,
        timeout_s=cell.load.request_timeout_s,
        shape=offered,
        seed=cell.seed + cell.trial,
        rest_s=cell.load.rest_s,
        warmup_requests=cell.load.warmup_requests,
        workers=workers,
    )
    try:
        with serving.started(ready) as server:
            result |= uvloop.run(load(cell, server, work, asked, records, ready.gpus))
            started = time.monotonic()
        result["stop_s"] = round(time.monotonic() - started, 3)
        answered(records)
    finally:
        if records.exists():
            result["records"] = {"path": records.name, "bytes": records.stat().st_size, "sha256": sha256(records)}


def set_aside(reserve: Path) -> None:
    """Keep room for the result, so that a full disk can still be told."""
    with reserve.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)


def main() -> None:
    args = job.arguments(__doc__, "engine", "environment", "prompts")
    cell: Cell = from_json(Cell, args.spec["cell"])
    args.output.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "key": store.key(args.spec, args.code),
        "spec": args.spec,
        "code": args.code,
        "host": telemetry.host(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    result["clock"] = {"perf_counter_ns": perf_counter_ns(), "unix_ns": time.time_ns()}
    log.info("%s: starting", cell.path)
    reserve = args.output.with_name("reserve")
    failed = job.classified(lambda: set_aside(reserve), args.output.parent) or job.classified(lambda: measure(cell, args, result), args.output.parent)
    reserve.unlink(missing_ok=True)
    result["failure"] = failed.to_json() if failed else None
    write_json(args.output, result)


if __name__ == "__main__":
    main()
