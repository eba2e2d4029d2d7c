"""What a server is asked, and what becomes of answers that are none: against a FAKE server that speaks as OpenAI's reference says."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

import backends
import experiment
import probe
import serving
from failure import Failure
from manifest import Manifest
from runtime import Launch
from spec import Tasks
from test_experiment import DEFAULT

PASSAGES = [[1, 2, 3], [4, 5], [6, 7, 8, 9], [10, 11], [12, 13], [14, 15]]
ECHO = backends.ECHO
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def tells(request: web.Request) -> web.StreamResponse:
    """Each token has the probability 1 / its id."""
    body = await request.json()
    told = [None, *(-math.log(token) for token in body["prompt"][1:]), -0.5]
    return web.json_response({"choices": [{"text": "", "logprobs": {"token_logprobs": told, "top_logprobs": [{}] * len(told)}}]})


async def says(request: web.Request) -> web.StreamResponse:
    """Streams back the prompt, a word an event."""
    body = await request.json()
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for word in body["messages"][-1]["content"].split():
        await response.write(b"data: " + json.dumps({"choices": [{"delta": {"content": word + " "}}]}).encode() + b"\n\n")
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


def asked(handler: Handler, ask: Callable[[aiohttp.ClientSession, serving.Prepared], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        app = web.Application()
        app.router.add_post("/{path:.*}", handler)
        async with TestServer(app) as server, aiohttp.ClientSession() as session:
            planned = experiment.load(json.loads(json.dumps(DEFAULT)))
            served = planned.serving("smollm2-135m-instruct", "none", "vllm")
            engine = Manifest("build", "k", {}, "", "/m", [], {"hf": "."})
            settings = backends.Serve(engine, "python", "m", server.port or 0, 256, 4, 1, 7, backends.load("vllm").Options(), ())
            return await ask(session, serving.Prepared(served, settings, Launch([], {}, None, None), server.port or 0, [], {}))  # type: ignore[arg-type]

    return asyncio.run(run())


def test_likelihoods_come_in_the_order_of_the_passages() -> None:
    told = asked(tells, lambda session, ready: probe.likelihoods(session, ready, ECHO, PASSAGES))

    assert told == [[pytest.approx(-math.log(token)) for token in passage[1:]] for passage in PASSAGES]


def test_answers_are_asked_for_as_the_load_asks_and_joined() -> None:
    assert asked(says, lambda session, ready: probe.answers(session, ready, ["one two", "three"], 8)) == ["one two ", "three "]


@pytest.mark.parametrize(("handler", "words"), [(fails, "answers 400: .*no logprobs here"), (lies, "not of the form that was expected: TypeError")])
def test_a_server_that_tells_no_probabilities_is_a_result(handler: Handler, words: str) -> None:
    with pytest.raises(Failure, match=words) as refused:
        asked(handler, lambda session, ready: probe.likelihoods(session, ready, ECHO, PASSAGES))
    assert refused.value.kind == "no_answer"


@pytest.mark.parametrize(("handler", "words"), [(fails, "answers 400"), (breaks, "ends it with: the engine is gone")])
def test_a_server_that_breaks_off_is_a_result(handler: Handler, words: str) -> None:
    with pytest.raises(Failure, match=words):
        asked(handler, lambda session, ready: probe.answers(session, ready, ["one"], 8))


def test_local_tasks_are_run_from_their_own_folder() -> None:
    tasks = Tasks(("a", "b"), 40, 0, "/tasks", "0")

    assert probe.harness("python", tasks, "validate") == ["python", "-m", "lm_eval", "validate", "--tasks", "a,b", "--include_path", "/tasks"]
    assert str(probe.launch([], tasks, None, "/scratch").workdir) == "/tasks"  # type: ignore[arg-type]
    assert "--include_path" not in probe.harness("python", Tasks(("a",), 1, 0), "validate")
