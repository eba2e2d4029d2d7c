"""Measure one session: start a server once, run every load of every workload on it, ask the quality questions, stop it.

Writes of each cell cell.json and records.arrow as the cell ends, quality.json, and last the session's own result. What
stands of them from an earlier run is kept; when nothing is missing no server is started. A classified failure is the
outcome of its cell; the exit code is 0 all the same.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import backends
import runtime
from host.machine import describe_host
from pipeline import alone, results, stage
from pipeline.artifact import Manifest, Unreadable, read_json, write_json
from pipeline.failure import RETRIED, Failure
from pipeline.spec import Cell, Load, Offered, Served, Tasks, Workload, from_json, plain
from pipeline.stage import Task
from questions import tasks as harness
from questions.ask import ask
from runtime import Server
from runtime import cell as cells
from runtime import server as servers
from runtime.server import Prepared

log = logging.getLogger(__name__)
RESERVE_BYTES = 32 << 10
# Servers that die under load one after the other: so many are started again.
RESTARTS = 2
# What a server can end in before it is ready although it was ready on an earlier start.
UNHEALTHY = ("server_died", "out_of_memory", "start_timeout")


@dataclass(frozen=True)
class Part:
    """A cell of the session, or its quality questions (`cell` is None): its key, its file, and what it was asked with."""

    name: str
    key: str
    file: Path
    spec: dict[str, Any]
    cell: Cell | None


@dataclass
class Start:
    """One start of the server; `before`: what ran on it already. `death`: what it died of, if it has."""

    number: int
    started: str
    compile_cache: str
    ready_s: float | None = None
    first_answer_s: float | None = None
    before: list[str] = field(default_factory=list)
    death: Failure | None = None

    def to_json(self) -> dict[str, Any]:
        """What the cells measured on it tell of it."""
        told = {name: value for name, value in vars(self).items() if name != "death"}
        return told | {"before": list(self.before)}


class Session:
    """What a session measures and where."""

    def __init__(self, job: Task):
        self.job, self.spec, self.folder = job, job.spec, job.output.parent
        self.served: Served = from_json(Served, job.spec["served"])
        self.trial: int = job.spec["trial"]
        self.parts = list(parts_of(job))
        self.host = describe_host()

    @property
    def path(self) -> str:
        return f"{self.served.path}/t{self.trial}"

    def prompts(self, workload: str) -> Manifest:
        """Failure `not_prepared` if choosing them had failed."""
        return stage.usable(self.job.manifest(f"prompts of {workload}"))

    def rows(self, workload: str) -> list[dict[str, Any]]:
        """The prompts of a workload, {turns, tokens, ...}."""
        return [
            json.loads(line)
            for line in self.prompts(workload).file("prompts").read_text().splitlines()
        ]


def parts_of(job: Task) -> Iterator[Part]:
    """The cells in the order in which they are measured, then the questions."""
    spec, folder = job.spec, job.output.parent
    served: Served = from_json(Served, spec["served"])
    load: Load = from_json(Load, spec["load"])
    for entry in spec["cells"]:
        workload: Workload = from_json(Workload, spec["workloads"][entry["workload"]]["workload"])
        offered: Offered = from_json(Offered, entry["offered"])
        cell = Cell(
            served.model,
            served.quantization,
            served.backend,
            workload,
            offered,
            spec["trial"],
            served.seed,
            load,
            served.server,
            spec["isolation"],
        )
        prompts = spec["workloads"][entry["workload"]]["prompts"]
        identity = {"cell": plain(cell), "engine": spec["engine"], "prompts": prompts}
        yield Part(
            cell.load_path, entry["key"], folder / cell.load_path / "cell.json", identity, cell
        )
    if spec["questions"]:
        yield Part(
            "questions", spec["questions"]["key"], folder / "quality.json", spec["questions"], None
        )


def standing(part: Part) -> dict[str, Any] | None:
    """What an earlier run wrote of this very part, if that still stands."""
    if not part.file.exists():
        return None
    try:
        found = read_json(part.file)
        if found["key"] != part.key:
            return None
        if found["failure"]:
            return None if RETRIED[found["failure"]["kind"]] else found
        if (
            part.cell
            and (part.file.with_name("records.arrow")).stat().st_size != found["records"]["bytes"]
        ):
            raise Unreadable(f"the records beside {part.file} have another length")
        return found
    except (Unreadable, KeyError, TypeError, OSError) as error:
        log.warning("%s: measured again: %s", part.file, error)
        return None


def head(session: Session, part: Part) -> dict[str, Any]:
    """What cell.json and quality.json begin with."""
    return {
        "key": part.key,
        "spec": part.spec,
        "code": session.job.code,
        "host": session.host,
        "started": now(),
        "clock": {"perf_counter_ns": perf_counter_ns(), "unix_ns": time.time_ns()},
    }


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def finish(part: Part, result: dict[str, Any], failure: Failure | None) -> None:
    result["failure"] = failure.to_json() if failure else None
    write_json(part.file, result)


def fail(session: Session, parts: list[Part], failure: Failure) -> None:
    """Write one failure down as the outcome of all these parts."""
    for part in parts:
        finish(part, head(session, part), failure)


def offerable(session: Session, parts: list[Part]) -> list[Part]:
    """Those parts that can be asked at all; the others fail before any server is started."""
    able = []
    for part in parts:
        _, failure = stage.attempt(partial(see_offer, session, part), session.folder)
        if failure:
            fail(session, [part], failure)
        else:
            able.append(part)
    return able


def see_offer(session: Session, part: Part) -> None:
    """Failure `not_prepared`, `no_prompts` or `no_task` where there is nothing to ask."""
    if part.cell:
        cells.shape_of(part.cell, session.rows(part.cell.workload.name))
        return
    stage.usable(session.job.manifest("texts"))
    if scored := tasks_of(session, part):
        harness.see_tasks(*scored, session.job.log.with_name("tasks.log"))


def tasks_of(session: Session, part: Part) -> tuple[str, Tasks] | None:
    """The harness's interpreter and the tasks, where this backend's API lets them be scored."""
    likelihood = backends.load(session.served.backend.adapter).LIKELIHOOD
    if not part.spec.get("tasks") or not (likelihood and likelihood.harness):
        return None
    python = stage.usable(session.job.manifest("harness")).facts["python"]
    tasks: Tasks = from_json(Tasks, part.spec["tasks"])
    folder = session.job.file("tasks")
    return python, dataclasses.replace(tasks, path=str(folder) if folder else None)


def run(session: Session, left: list[Part], number: int) -> None:
    """Measure these parts on as few starts as the server's health and the configuration allow; `number`: starts before.

    A server that never becomes ready fails them all. One that was ready once and died is started again for the next part,
    unless that goes wrong RESTARTS more times in a row; where each part has a start of its own, it is not given up.
    """
    waiting, deaths, was_ready = deque(offerable(session, left)), 0, False
    while waiting:
        number += 1
        start, unready = stage.attempt(partial(serve, session, waiting, number), session.folder)
        if unready and not (was_ready and unready.kind in UNHEALTHY):
            fail(session, list(waiting), unready)
            return
        was_ready = was_ready or start is not None
        death = start.death if start else unready
        deaths = 0 if death is None else 1 if start and start.before else deaths + 1
        given_up = session.spec["isolation"] == "session" or start is None
        if death and deaths > RESTARTS and given_up:
            reason = f"Not tried: the server had died {deaths} times in a row. {death.reason}"
            remedy = f"Run again to go on with these loads. {death.remedy}"
            untried = Failure("not_tried", reason, remedy, death.log_tail)
            fail(session, list(waiting), untried)
            return


def serve(session: Session, waiting: deque[Part], number: int) -> Start:
    """Start a server and measure on it what waits, until nothing does, or the server has died, or each part is to have a
    start of its own. A Failure before it is ready is raised.
    """
    engine, environment = (
        stage.usable(session.job.manifest(name)) for name in ("engine", "environment")
    )
    log_file = session.job.log.with_name(f"server.{number}.log")
    engine_key = session.spec["engine"]
    ready = servers.prepare(session.served, engine, environment, engine_key, log_file, session.path)
    adapter = backends.load(session.served.backend.adapter)
    start = Start(number, now(), ready.facts["compile_cache"])
    log.info("%s: starting the server (start %d)", session.path, number)
    with servers.started(ready) as server:
        timeout_s = session.served.server.start_timeout_s
        ready_s = asyncio.run(servers.until_ready(server, ready.url + adapter.READY, timeout_s))
        start.ready_s = round(ready_s, 3)
        log.info("%s: ready after %.1f s", session.path, ready_s)
        about = {
            "form": engine.facts["form"],
            "random": bool(engine.facts.get("random")),
            "versions": servers.versions(environment, session.served.backend.adapter),
            **ready.facts,
            "info": asyncio.run(servers.told(ready.url, adapter.INFO)),
        }
        while waiting:
            rested = rest_and_reset(session, ready, server, start)
            if dead_at_rest(session, server, start):
                return start
            part = waiting.popleft()
            failure = measure(session, part, ready, server, start, about | rested)
            if failure and server.exit_code() is not None:
                start.death = failure
                return start
            start.before.append(part.name)
            if session.spec["isolation"] == "cell":
                break
    log.info("%s: the server has stopped", session.path)
    return start


def dead_at_rest(session: Session, server: Server, start: Start) -> bool:
    """Whether the server has ended since its last load; then the cell that came before says so."""
    check = partial(runtime.check, server, "between two loads")
    _, start.death = stage.attempt(check, session.folder)
    if start.death and start.before:
        [last] = [part for part in session.parts if part.name == start.before[-1]]
        write_json(last.file, read_json(last.file) | {"died_after": start.death.reason})
    return start.death is not None


def measure(
    session: Session,
    part: Part,
    ready: Prepared,
    server: Server,
    start: Start,
    about: dict[str, Any],
) -> Failure | None:
    """Measure one part on a running server and write its file; gives what it failed with."""
    log.info("%s: %s", session.path, part.name)
    result = head(session, part) | about
    reserve = part.file.with_name("reserve")

    def work() -> None:
        set_aside(reserve)
        if part.cell:
            measure_cell(session, part.cell, ready, server, start, result, part.file.parent)
        else:
            result.update(answer_questions(session, part, ready, server))

    part.file.parent.mkdir(parents=True, exist_ok=True)
    part.file.unlink(missing_ok=True)
    began = perf_counter_ns()
    _, failure = stage.attempt(work, part.file.parent)
    reserve.unlink(missing_ok=True)
    result |= {"start": start.to_json()}
    finish(part, result | {"seconds": round((perf_counter_ns() - began) / 1e9, 1)}, failure)
    return failure


def measure_cell(
    session: Session,
    cell: Cell,
    ready: Prepared,
    server: Server,
    start: Start,
    result: dict[str, Any],
    folder: Path,
) -> None:
    result["prompts"] = session.prompts(cell.workload.name).facts
    offered = cells.offer(cell, session.rows(cell.workload.name), ready)
    result["asked_tokens"] = offered.asked_tokens
    if not start.before:
        start.first_answer_s = asyncio.run(cells.first_answer(offered))
    cells.measure(cell, ready, server, offered, folder, result)


def rest_and_reset(
    session: Session, ready: Prepared, server: Server, start: Start
) -> dict[str, Any]:
    """Rest, and empty the prefix cache where the backend has a way: {rest: {seconds, server_cores}, cache}.

    `cache`: off; cold (nothing was asked before, or it has been emptied); primed by what was asked before.
    """
    server_settings, backend = session.served.server, session.served.backend.adapter
    rested = cells.rest(server, session.spec["load"]["settle_s"]) if start.before else None
    if server_settings.policy == "equal" and not server_settings.prefix_caching:
        return {"rest": rested, "cache": "off"}
    reset = backends.reset_of(backend)
    emptied = not start.before or (
        reset is not None and asyncio.run(servers.reset_cache(ready.url + reset))
    )
    return {"rest": rested, "cache": "cold" if emptied else "primed"}


def answer_questions(
    session: Session, part: Part, ready: Prepared, server: Server
) -> dict[str, Any]:
    """{log_probs, answers, tasks}, as far as they are asked for and the server's API tells."""
    found: dict[str, Any] = {}
    texts = stage.usable(session.job.manifest("texts"))
    found |= asyncio.run(ask(ready, server, texts, part.spec["answer_tokens"]))
    if scored := tasks_of(session, part):
        tokenizer = stage.usable(session.job.manifest("model")).file("tokenizer")
        log_file = session.job.log.with_name("tasks.log")
        found["tasks"] = harness.score(*scored, ready, tokenizer, log_file)
    return found


def set_aside(reserve: Path) -> None:
    """Keep room for the result, so that a full disk can still be told."""
    with reserve.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)


def index(session: Session) -> dict[str, Any]:
    """The session's own result: what became of each part, and the files that must be there for it to stand."""
    files, outcomes, retry = {}, {}, None
    for part in session.parts:
        found = read_json(part.file)
        failure = found["failure"] or {}
        outcomes[part.name] = {
            "key": part.key,
            "started": found["started"],
            "failure": failure.get("kind"),
        }
        retry = retry or (failure.get("reason") if failure and RETRIED[failure["kind"]] else None)
        files[str(part.file.relative_to(session.folder))] = results.part(part.file)
        records = part.file.with_name("records.arrow")
        if part.cell and not failure:
            files[str(records.relative_to(session.folder))] = results.part(records)
    return {
        "key": session.job.key,
        "code": session.job.code,
        "parts": files,
        "outcomes": outcomes,
        "retry": retry,
    }


def main() -> None:
    session = Session(stage.task(__doc__))
    with alone.on_folder(session.folder):
        kept = {part.name: standing(part) for part in session.parts}
        left = [part for part in session.parts if not kept[part.name]]
        if left:
            log.info(
                "%s: to measure: %s; %d stand",
                session.path,
                ", ".join(part.name for part in left),
                len(kept) - len(left),
            )
            numbers = [
                found["start"]["number"] for found in kept.values() if found and "start" in found
            ]
            with alone.on_machine(f"measures {session.path}"):
                run(session, left, max(numbers, default=0))
        results.write(session.job.output, index(session))


if __name__ == "__main__":
    main()
