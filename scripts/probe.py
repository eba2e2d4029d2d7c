"""Ask what is served how good it is: start a server as a cell's is, ask how likely it finds the held-out passages, for its greedy
answers, and for the tasks; stop it. Writes raw answers only; `assess` judges them.

A classified failure is written into probe.json as its outcome; the exit code is 0 all the same.
"""

from __future__ import annotations

import asyncio
import json
import logging
import tempfile
import time
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import aiohttp

import backends
import command
import job
import runtime
import serving
import store
import telemetry
from failure import Failure
from loadgen import wire
from manifest import Manifest, write_json
from metrics import stream
from runtime import Launch, Server
from spec import Served, Tasks, from_json

log = logging.getLogger(__name__)
# Passages that are asked for at the same time: each is scored by itself.
AT_ONCE = 4


async def likelihoods(session: aiohttp.ClientSession, ready: serving.Prepared, how: backends.Likelihood, passages: list[list[int]]) -> list[list[float]]:
    """Of each passage the natural logarithms of the probabilities of its tokens but the first; Failure `no_answer`."""
    room, done = asyncio.Semaphore(min(AT_ONCE, ready.settings.max_sequences)), 0

    async def one(ids: list[int]) -> list[float]:
        nonlocal done
        async with room:
            answers = []
            for path, body in how.ask(ids, ready.settings):
                async with session.post(ready.url + path, json=body) as response:
                    text = await response.text()
                    if response.status != 200:
                        raise Failure("no_answer", f"Asked for probabilities, the server answers {response.status}: {text[:300]}", "See the server's log.")
                    answers.append(json.loads(text))
            done += 1
            log.info("%s: passage %d of %d", ready.served.path, done, len(passages))
            try:
                return how.read(ids, answers)
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise Failure("no_answer", f"The server's probabilities are not of the form that was expected: {type(error).__name__}: {error}", "See the server's log.") from error

    return list(await asyncio.gather(*(one(ids) for ids in passages)))


async def answers(session: aiohttp.ClientSession, ready: serving.Prepared, prompts: list[str], length: int) -> list[str]:
    """The greedy answers, one prompt after the other, asked for as the load asks; Failure `no_answer`."""
    said = []
    for number, prompt in enumerate(prompts, 1):
        ask = backends.Ask(prompt, (), None, length, False, 0, ready.served.seed)
        path, body = backends.load(ready.served.backend.adapter).request(ask, ready.settings)
        async with session.post(ready.url + path, json=body) as response:
            received = await response.read()
            if response.status != 200:
                raise Failure("no_answer", f"Asked for a greedy answer, the server answers {response.status}: {received[:300].decode(errors='replace')}", "See the server's log.")
        events = [stream.event(0, data) for _, data in wire.frames(received)]
        broken = next((event.error for event in events if event.error), None)
        if broken:
            raise Failure("no_answer", f"Asked for a greedy answer, the server ends it with: {broken}", "See the server's log.")
        said.append("".join(event.text for event in events))
        log.info("%s: answer %d of %d", ready.served.path, number, len(prompts))
    return said


def harness(python: str, tasks: Tasks, *arguments: str) -> list[str]:
    """A command line of lm-evaluation-harness about these tasks."""
    return [python, "-m", "lm_eval", *arguments, "--tasks", ",".join(tasks.names), *(["--include_path", tasks.path] if tasks.path else [])]


def launch(argv: list[str], tasks: Tasks, log_file: Path, scratch: str) -> Launch:
    """From the folder of the local tasks, so that they can name the data beside them."""
    return Launch(argv, {"TOKENIZERS_PARALLELISM": "false", "DO_NOT_TRACK": "1"}, log_file, Path(tasks.path or scratch))


def see_tasks(python: str, tasks: Tasks, log_file: Path) -> None:
    """Failure `no_task` where one is not known, or cannot be scored by likelihoods."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            command.run(launch(harness(python, tasks, "validate"), tasks, log_file, scratch), "process", "no_task")
        except Failure as error:
            said = [line for line in error.log_tail.splitlines() if "not found" in line.lower() or "did you mean" in line.lower()]
            raise Failure(
                "no_task", f"lm-evaluation-harness does not know all of {', '.join(tasks.names)}. {' '.join(said)}", "Correct evaluation.tasks.names.", error.log_tail
            ) from error


def score(python: str, tasks: Tasks, ready: serving.Prepared, tokenizer: Path, log_file: Path) -> dict[str, Any]:
    """What lm-evaluation-harness says of each task: {task: {metric: value, ...}}; it asks the running server."""
    model = f"model={ready.settings.served_name},base_url={ready.url}/v1/completions,tokenizer={tokenizer},tokenizer_backend=huggingface"
    model += f",num_concurrent={AT_ONCE},max_length={ready.settings.context_length},max_retries=1"
    with tempfile.TemporaryDirectory() as scratch:
        told = Path(scratch, "told.json")
        options = ["--model", "local-completions", "--model_args", model, "--limit", str(tasks.limit), "--num_fewshot", str(tasks.shots)]
        options += ["--seed", str(ready.served.seed), "--output_path", str(told)]
        command.run(launch(harness(python, tasks, "run", *options), tasks, log_file, scratch), "process", "no_answer")
        [written] = Path(scratch).glob("told*.json")
        made = json.loads(written.read_text())
    return {name: {"items": made["n-samples"][name]["effective"], **entry} for name, entry in made["results"].items()}


async def ask(ready: serving.Prepared, server: Server, texts: Manifest | None, answer_tokens: int) -> dict[str, Any]:
    adapter = backends.load(ready.served.backend.adapter)
    ready_s = await serving.until_ready(server, ready.url + adapter.READY, ready.served.server.start_timeout_s)
    log.info("%s: ready after %.1f s", ready.served.path, ready_s)
    found: dict[str, Any] = {"ready_s": round(ready_s, 3)}
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(trust_env=False, timeout=aiohttp.ClientTimeout(total=600), connector=connector) as session:
        try:
            if texts and "passages" in texts.facts and adapter.LIKELIHOOD:
                found["log_probs"] = await likelihoods(session, ready, adapter.LIKELIHOOD, json.loads(texts.file("passages").read_text()))
            if texts and "prompts" in texts.facts:
                found["answers"] = await answers(session, ready, json.loads(texts.file("prompts").read_text()), answer_tokens)
        except (aiohttp.ClientError, TimeoutError) as error:
            await asyncio.sleep(1)
            runtime.check(server, "while it was asked how good it is")
            raise Failure("no_answer", f"Asked how good it is, the server gave no answer: {type(error).__name__}: {error}", "See the server's log.") from error
    return found


def probe(served: Served, args: Any, result: dict[str, Any]) -> None:
    """Fill `result`; raises Failure when it has failed."""
    engine, environment = (job.usable(Manifest.load(path)) for path in (args.engine, args.environment))
    texts = job.usable(Manifest.load(args.texts)) if args.texts else None
    adapter = backends.load(served.backend.adapter)
    scored = adapter.LIKELIHOOD is not None and adapter.LIKELIHOOD.harness
    tasks: Tasks | None = from_json(Tasks, args.spec.get("tasks")) if scored else None
    python = job.usable(Manifest.load(args.harness)).facts["python"] if args.harness else ""
    ready = serving.prepare(served, engine, environment, args.spec["engine"], args.log.with_name("server.log"), f"probe {served.path}")
    result |= {"form": engine.facts["form"], **ready.facts}
    if tasks:
        see_tasks(python, tasks, args.log.with_name("tasks.log"))
    with serving.started(ready) as server:
        result |= asyncio.run(ask(ready, server, texts, args.spec["answer_tokens"]))
        if tasks:
            result["tasks"] = score(python, tasks, ready, job.usable(Manifest.load(args.model)).file("tokenizer"), args.log.with_name("tasks.log"))


def main() -> None:
    args = job.arguments(__doc__, "engine", "environment", "model", "texts?", "harness?")
    served: Served = from_json(Served, args.spec["served"])
    args.output.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"key": store.key(args.spec, args.code), "spec": args.spec, "code": args.code, "host": telemetry.host()}
    result["started"], began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), perf_counter_ns()
    failed = job.classified(lambda: probe(served, args, result), args.output.parent)
    result |= {"failure": failed.to_json() if failed else None, "seconds": round((perf_counter_ns() - began) / 1e9, 1)}
    write_json(args.output, result)


if __name__ == "__main__":
    main()
