"""Ask a running server how likely it finds the held-out passages, and for its greedy answers."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import aiohttp

import backends
import runtime
from loadgen import stream, wire
from pipeline.artifact import Manifest
from pipeline.failure import Failure
from runtime import Server
from runtime.server import Prepared

log = logging.getLogger(__name__)
# Passages that are asked for at the same time: each is scored by itself.
AT_ONCE = 4
TIMEOUT = aiohttp.ClientTimeout(total=600)


async def ask(
    ready: Prepared, server: Server, texts: Manifest, answer_tokens: int
) -> dict[str, Any]:
    """{log_probs, answers}, as far as the texts hold passages and prompts and the server's API tells probabilities.

    Failure `no_answer`, or what became of the server.
    """
    how = backends.load(ready.served.backend.adapter).LIKELIHOOD
    found: dict[str, Any] = {}
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(
        trust_env=False, timeout=TIMEOUT, connector=connector
    ) as session:
        try:
            if "passages" in texts.facts and how:
                passages = json.loads(texts.file("passages").read_text())
                found["log_probs"] = await likelihoods(session, ready, how, passages)
            if "prompts" in texts.facts:
                prompts = json.loads(texts.file("prompts").read_text())
                found["answers"] = await answers(session, ready, prompts, answer_tokens)
        except (aiohttp.ClientError, TimeoutError) as error:
            await asyncio.sleep(1)
            runtime.check(server, "while it was asked quality questions")
            reason = (
                f"The server did not answer a quality question: {type(error).__name__}: {error}"
            )
            raise Failure("no_answer", reason, "See the server's log.") from error
    return found


async def likelihoods(
    session: aiohttp.ClientSession,
    ready: Prepared,
    how: backends.Likelihood,
    passages: list[list[int]],
) -> list[list[float]]:
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
                        raise Failure(
                            "no_answer",
                            f"Asked for probabilities, the server answers {response.status}: {text[:300]}",
                            "See the server's log.",
                        )
                    answers.append(text)
            done += 1
            log.info("%s: passage %d of %d", ready.served.path, done, len(passages))
            try:
                return how.read(ids, [json.loads(text) for text in answers])
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise Failure(
                    "no_answer",
                    f"The server's probabilities are not of the form that was expected: {type(error).__name__}: {error}",
                    "See the server's log.",
                ) from error

    return list(await asyncio.gather(*(one(ids) for ids in passages)))


async def answers(
    session: aiohttp.ClientSession, ready: Prepared, prompts: list[str], length: int
) -> list[str]:
    """The greedy answers, one prompt after the other, asked for as the load asks; Failure `no_answer`."""
    said = []
    for number, prompt in enumerate(prompts, 1):
        ask = backends.Ask(prompt, (), None, length, False, 0, ready.served.seed)
        path, body = backends.load(ready.served.backend.adapter).request(ask, ready.settings)
        async with session.post(ready.url + path, json=body) as response:
            received = await response.read()
            if response.status != 200:
                raise Failure(
                    "no_answer",
                    f"Asked for a greedy answer, the server answers {response.status}: {received[:300].decode(errors='replace')}",
                    "See the server's log.",
                )
        events = [stream.event(0, data) for _, data in wire.frames(received)]
        broken = next((event.error for event in events if event.error), None)
        if broken:
            raise Failure(
                "no_answer",
                f"Asked for a greedy answer, the server ends it with: {broken}",
                "See the server's log.",
            )
        said.append("".join(event.text for event in events))
        log.info("%s: answer %d of %d", ready.served.path, number, len(prompts))
    return said
