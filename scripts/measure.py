"""Measure one cell: start its server, wait, warm up, load it, watch the machine, stop it.

Writes cell.json (the output) and beside it records.arrow, every request's raw facts. A classified failure is written
into cell.json as the cell's outcome; the exit code is 0 all the same.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import tempfile
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
import store
import telemetry
from failure import Failure
from loadgen import client, drive, record, schedule
from manifest import Manifest, sha256, write_json
from runtime import process
from spec import Cell, from_json

log = logging.getLogger(__name__)
POLL_S = 0.1
WATCH_S = 0.5
RESERVE_BYTES = 32 << 10


def serving(cell: Cell, engine: Manifest, environment: Manifest) -> backends.Serve:
    """The neutral settings of this cell's server, resolved on this machine."""
    port = process.claim_port(cell.server.port) if cell.server.port else process.free_port()
    adapter = backends.load(cell.backend.adapter)
    return backends.Serve(
        engine=engine,
        python=environment.facts["python"],
        served_name=cell.model.name,
        port=port,
        context_length=cell.server.context_length,
        max_sequences=cell.server.max_sequences,
        threads=cell.server.threads or max(1, (psutil.cpu_count() or 2) - 1),
        seed=cell.seed,
        options=adapter.Options(**cell.backend.options),
        args=cell.backend.args,
    )


async def until_ready(server: process.Process, url: str, timeout_s: float) -> float:
    """Seconds from start to the first 200 of the readiness path; Failure `start_timeout`, `server_died` or `out_of_memory`."""
    timeout = aiohttp.ClientTimeout(total=5)
    async with aiohttp.ClientSession(trust_env=False, timeout=timeout, connector=aiohttp.TCPConnector(force_close=True)) as session:
        while True:
            server.check("before it was ready")
            passed = (perf_counter_ns() - server.started_ns) / 1e9
            if passed > timeout_s:
                raise Failure(
                    "start_timeout",
                    f"The server was not ready {timeout_s:g} s after its start.",
                    "Read its last words below; raise server.start_timeout_s if it only needs longer.",
                    server.tail(),
                )
            try:
                async with session.get(url) as response:
                    if response.status == 200:
                        return passed
            except (aiohttp.ClientError, TimeoutError, OSError):
                pass
            await asyncio.sleep(POLL_S)


async def first_answer(target: drive.Target) -> float | None:
    """Seconds that one request takes right after the server is ready: what a cold server costs its first user. None if it failed."""
    probe = record.Record(0, 0, "probe", 0, perf_counter_ns())
    async with client.session() as session:
        await client.send(session, target.url, target.bodies[0], probe, target.timeout_s)
    if probe.outcome != "complete":
        log.warning("the first request failed: %s: %s", probe.outcome, probe.error)
        return None
    assert probe.done_ns
    return round((probe.done_ns - probe.scheduled_ns) / 1e9, 3)


async def load(cell: Cell, server: process.Process, serve: backends.Serve, bodies: list[tuple[str, dict[str, Any]]], records: Path) -> dict[str, Any]:
    """Wait for the server and drive the load; gives what cell.json says of it."""
    adapter = backends.load(cell.backend.adapter)
    base = f"http://{serve.host}:{serve.port}"
    ready_s = await until_ready(server, base + adapter.READY, cell.server.start_timeout_s)
    log.info("%s: ready after %.1f s", cell.path, ready_s)
    target = drive.Target(base + bodies[0][0], [json.dumps(body).encode() for _, body in bodies], cell.load.request_timeout_s)
    answer_s = await first_answer(target)
    users = schedule.closed_loop(cell.concurrency, cell.load.ramp_s, len(bodies), cell.seed + cell.trial)
    with record.writing(records) as writer:

        async def watch() -> None:
            while True:
                server.check("under load")
                if writer.failed:
                    raise writer.failed
                await asyncio.sleep(WATCH_S)

        with telemetry.sampling(server.tree) as samples:
            course = await drive.closed_loop(
                target,
                users,
                cell.load.warmup_requests,
                cell.load.ramp_s,
                cell.load.window_s,
                cell.load.rest_s,
                put=writer.put,
                progress=lambda line: log.info("%s/c%d  %s", cell.backend.name, cell.concurrency, line),
                watch=watch,
            )
    return {"ready_s": round(ready_s, 3), "first_answer_s": answer_s, "course": asdict(course), "telemetry": samples}


def answered(records: Path) -> None:
    """Failure `no_answer` if not one request of the load was completed."""
    table = record.read(records)
    outcomes = table[table.phase == "load"].groupby("outcome").error.agg(["size", "first"]).sort_values("size", ascending=False)
    if "complete" not in outcomes.index:
        what = f"{outcomes.index[0]}: {outcomes['first'].iloc[0]}" if len(outcomes) else "none was sent"
        raise Failure("no_answer", f"The server was ready but completed none of {int(outcomes['size'].sum())} requests; most often {what}", "See the server's log.")


def measure(cell: Cell, args: Any, result: dict[str, Any]) -> None:
    """Fill `result` as far as it goes; raises Failure when the cell has failed."""
    engine, environment, prompts = (job.usable(Manifest.load(path)) for path in (args.engine, args.environment, args.prompts))
    adapter = backends.load(cell.backend.adapter)
    lines = [json.loads(line) for line in prompts.file("prompts").read_text().splitlines()]
    asks = [backends.Ask(line["text"], cell.workload.system_prompt, cell.workload.max_tokens, cell.workload.ignore_eos, cell.workload.temperature, cell.seed) for line in lines]
    result |= {"form": engine.facts["form"], "prompts": prompts.facts, "versions": environment.facts["versions"], "random": bool(engine.facts.get("random"))}
    serve = serving(cell, engine, environment)
    command = adapter.command(serve)
    result |= {"command": [part.replace(str(Path.home()), "~") for part in command.argv], "threads": serve.threads}
    records, server_log = args.output.with_name("records.arrow"), args.log.with_name("server.log")
    records.unlink(missing_ok=True)
    bodies = [adapter.request(ask, serve) for ask in asks]
    try:
        with tempfile.TemporaryDirectory() as scratch, process.serve(command.argv, command.env, server_log, Path(scratch)) as server:
            result |= uvloop.run(load(cell, server, serve, bodies, records))
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
