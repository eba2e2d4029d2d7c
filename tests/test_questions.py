"""What a server is asked, and what becomes of answers that are none: against a FAKE server that speaks as OpenAI's reference says."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

import backends
from config import experiment
from pipeline.artifact import Manifest
from pipeline.failure import Failure
from pipeline.spec import Tasks
from questions.ask import answers, ask, likelihoods
from questions.tasks import harness, launch, score, see_tasks
from runtime import Launch
from runtime.server import Prepared
from test_experiment import DEFAULT

PASSAGES = [[1, 2, 3], [4, 5], [6, 7, 8, 9], [10, 11], [12, 13], [14, 15]]
ECHO = backends.ECHO
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def tells(request: web.Request) -> web.StreamResponse:
    """Each token has the probability 1 / its id."""
    body = await request.json()
    told = [None, *(-math.log(token) for token in body["prompt"][1:]), -0.5]
    return web.json_response(
        {
            "choices": [
                {"text": "", "logprobs": {"token_logprobs": told, "top_logprobs": [{}] * len(told)}}
            ]
        }
    )


async def says(request: web.Request) -> web.StreamResponse:
    """Streams back the prompt, a word an event."""
    body = await request.json()
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for word in body["messages"][-1]["content"].split():
        await response.write(
            b"data: "
            + json.dumps({"choices": [{"delta": {"content": word + " "}}]}).encode()
            + b"\n\n"
        )
    await response.write(b"data: [DONE]\n\n")
    return response


async def fails(_request: web.Request) -> web.StreamResponse:
    return web.json_response({"error": "no logprobs here"}, status=400)


async def lies(_request: web.Request) -> web.StreamResponse:
    return web.json_response({"choices": [{"text": "x", "logprobs": None}]})


async def breaks(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await response.write(b'data: {"error": {"message": "the engine is gone"}}\n\n')
    return response


def asked(
    handler: Handler, question: Callable[[aiohttp.ClientSession, Prepared], Awaitable[Any]]
) -> Any:
    async def run() -> Any:
        app = web.Application()
        app.router.add_post("/{path:.*}", handler)
        async with TestServer(app) as server, aiohttp.ClientSession() as session:
            return await question(session, prepared(server.port or 0))

    return asyncio.run(run())


def prepared(port: int) -> Prepared:
    planned = experiment.load(json.loads(json.dumps(DEFAULT)))
    served = planned.serving("smollm2-135m-instruct", "none", "vllm")
    engine = Manifest("build", "k", {}, "", "/m", [], {"hf": "."})
    settings = backends.Serve(
        engine, "python", "m", port, 256, 4, 1, 7, backends.load("vllm").Options(), ()
    )
    return Prepared(served, settings, Launch([], {}, None, None), port, [], {})  # type: ignore[arg-type]


def test_likelihoods_come_in_the_order_of_the_passages() -> None:
    told = asked(tells, lambda session, ready: likelihoods(session, ready, ECHO, PASSAGES))

    assert told == [
        [pytest.approx(-math.log(token)) for token in passage[1:]] for passage in PASSAGES
    ]


def test_answers_are_asked_for_as_the_load_asks_and_joined() -> None:
    assert asked(says, lambda session, ready: answers(session, ready, ["one two", "three"], 8)) == [
        "one two ",
        "three ",
    ]


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (fails, "answers 400: .*no logprobs here"),
        (lies, "not of the form that was expected: TypeError"),
    ],
)
def test_a_server_that_tells_no_probabilities_is_a_result(handler: Handler, words: str) -> None:
    with pytest.raises(Failure, match=words) as refused:
        asked(handler, lambda session, ready: likelihoods(session, ready, ECHO, PASSAGES))
    assert refused.value.kind == "no_answer"


@pytest.mark.parametrize(
    ("handler", "words"), [(fails, "answers 400"), (breaks, "ends it with: the engine is gone")]
)
def test_a_server_that_breaks_off_is_a_result(handler: Handler, words: str) -> None:
    with pytest.raises(Failure, match=words):
        asked(handler, lambda session, ready: answers(session, ready, ["one"], 8))


async def speaks(request: web.Request) -> web.StreamResponse:
    return await (tells(request) if request.path == "/v1/completions" else says(request))


async def hangs_up(request: web.Request) -> web.StreamResponse:
    assert request.transport
    request.transport.abort()
    return web.Response()


def texts(folder: Path) -> Manifest:
    (folder / "passages.json").write_text(json.dumps(PASSAGES))
    (folder / "prompts.json").write_text(json.dumps(["one two"]))
    facts = {"passages": "passages.json", "prompts": "prompts.json"}
    return Manifest("texts", "k", {}, "", str(folder), [], facts)


def running(folder: Path, code: int | None = None) -> Any:
    """A FAKE of a server's process: it runs, or has ended with this code."""
    (folder / "log").write_text("last words")
    return SimpleNamespace(
        log_file=folder / "log", exit_code=lambda: code, out_of_memory=lambda: False
    )


def test_a_server_is_asked_what_the_texts_hold_and_its_api_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, server = texts(tmp_path), running(tmp_path)

    def found(of: Manifest) -> dict[str, Any]:
        return dict(asked(speaks, lambda _, ready: ask(ready, server, of, 8)))

    assert found(held)["answers"] == ["one two "]
    assert list(map(len, found(held)["log_probs"])) == [len(passage) - 1 for passage in PASSAGES]
    assert set(found(dataclasses.replace(held, facts={"prompts": "prompts.json"}))) == {"answers"}
    monkeypatch.setattr(backends.load("vllm"), "LIKELIHOOD", None)
    assert set(found(held)) == {"answers"}


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (None, "no_answer", "did not answer a quality question: ServerDisconnectedError"),
        (3, "server_died", "ended with exit code 3 while it was asked quality questions"),
    ],
)
def test_a_server_that_hangs_up_is_a_result(
    tmp_path: Path, code: int | None, kind: str, words: str
) -> None:
    held, server = texts(tmp_path), running(tmp_path, code)

    with pytest.raises(Failure, match=words) as refused:
        asked(hangs_up, lambda _, ready: ask(ready, server, held, 8))
    assert refused.value.kind == kind


def test_local_tasks_are_run_from_their_own_folder() -> None:
    tasks = Tasks(("a", "b"), 40, 0, "/tasks", "0")

    assert harness("python", tasks, "validate") == [
        "python",
        "-m",
        "lm_eval",
        "validate",
        "--tasks",
        "a,b",
        "--include_path",
        "/tasks",
    ]
    assert str(launch([], tasks, None, "/scratch").workdir) == "/tasks"  # type: ignore[arg-type]
    assert "--include_path" not in harness("python", Tasks(("a",), 1, 0), "validate")


TASKS = Tasks(("a", "b"), 40, 0)
# FAKES of the harness: one knows no task b, one has scored both and says which items it took.
KNOWS_NO_B = "echo 'Tasks not found: b'; exit 1"
HAS_SCORED = """
while [ "$1" != --output_path ]; do said="$said $1"; shift; done
echo "$said" > {said}
name=$(dirname "$2")/told_2026.json
echo '{{"n-samples": {{"a": {{"effective": 40}}}}, "results": {{"a": {{"acc,none": 0.5}}}}}}' > "$name"
"""


def program(folder: Path, text: str) -> str:
    (folder / "python").write_text(f"#!/bin/sh\n{text}\n")
    (folder / "python").chmod(0o755)
    return str(folder / "python")


def test_a_task_that_is_not_known_is_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"does not know all of a, b\. Tasks not found: b") as refused:
        see_tasks(program(tmp_path, KNOWS_NO_B), TASKS, tmp_path / "log")
    assert (refused.value.kind, refused.value.remedy) == (
        "no_task",
        "Correct evaluation.tasks.names.",
    )
    see_tasks(program(tmp_path, "exit 0"), TASKS, tmp_path / "log")


def test_scores_come_with_the_number_of_their_items(tmp_path: Path) -> None:
    python = program(tmp_path, HAS_SCORED.format(said=tmp_path / "said"))
    told = score(python, TASKS, prepared(8123), Path("/tokenizer"), tmp_path / "log")

    assert told == {"a": {"items": 40, "acc,none": 0.5}}
    said = (tmp_path / "said").read_text()
    assert "base_url=http://127.0.0.1:8123/v1/completions,tokenizer=/tokenizer" in said
    assert "--limit 40 --num_fewshot 0" in said
