"""An OpenAI-compatible front end for OpenVINO GenAI's ContinuousBatchingPipeline, which has no server of its own.

Runs in the environment envs/openvino.txt. One thread steps the engine; the event loop speaks HTTP. The engine is real,
the front end is this file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import threading
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
from aiohttp import web

log = logging.getLogger("openvino-front-end")


class BadRequest(Exception):
    """The client asked for what cannot be; the message goes back to it."""


@dataclass(eq=False)
class Generation:
    """One request inside the engine: new token ids and its end arrive in `news`. With `echo` the prompt's ids come first, and
    `log_probs` holds one number for each id, if they were asked for."""

    ids: Any
    config: genai.GenerationConfig
    loop: asyncio.AbstractEventLoop
    news: asyncio.Queue[tuple[list[int], str | None]] = field(default_factory=asyncio.Queue)
    handle: Any = None
    log_probs: list[float] = field(default_factory=list)
    cancelled: bool = False


class Engine:
    """Owns the pipeline. Only its thread touches it; others leave generations in `arriving`."""

    def __init__(self, model: str, scheduler: genai.SchedulerConfig, threads: int):
        self.pipeline = genai.ContinuousBatchingPipeline(
            model, scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads}
        )
        self.tokenizer = self.pipeline.get_tokenizer()
        self.wake = threading.Condition()
        self.arriving: list[Generation] = []
        self.running: list[Generation] = []
        self.failed: str | None = None
        threading.Thread(target=self.work, daemon=True, name="engine").start()

    def submit(self, generation: Generation) -> None:
        with self.wake:
            self.arriving.append(generation)
            self.wake.notify()

    def work(self) -> None:
        try:
            for number in range(2**62):
                self.admit(number << 20)
                if self.pipeline.has_non_finished_requests():
                    self.pipeline.step()
                self.running = [
                    generation for generation in self.running if not self.deliver(generation)
                ]
        except Exception as error:
            log.exception("the engine stopped")
            self.failed = f"{type(error).__name__}: {error}"
            for generation in [*self.running, *self.arriving]:
                generation.loop.call_soon_threadsafe(generation.news.put_nowait, ([], "error"))

    def admit(self, first_number: int) -> None:
        """Take over what has arrived; sleep while there is nothing at all to do."""
        with self.wake:
            while not self.arriving and not self.running:
                self.wake.wait()
            arrived, self.arriving = self.arriving, []
        for offset, generation in enumerate(arrived):
            generation.handle = self.pipeline.add_request(
                first_number + offset, generation.ids, generation.config
            )
            self.running.append(generation)

    def deliver(self, generation: Generation) -> bool:
        """Hand new tokens to the event loop; True when the generation is over."""
        if generation.cancelled:
            generation.handle.cancel()
            return True
        ids = []
        while generation.handle.can_read():
            for output in generation.handle.read().values():
                ids += output.generated_ids
                generation.log_probs += output.generated_log_probs
        status = generation.handle.get_status()
        ended = (
            None
            if status == genai.GenerationStatus.RUNNING
            else "done"
            if status == genai.GenerationStatus.FINISHED
            else "error"
        )
        if ids or ended:
            generation.loop.call_soon_threadsafe(generation.news.put_nowait, (ids, ended))
        return ended is not None


def generation_config(body: dict[str, Any], tokenizer: Any, room: int) -> genai.GenerationConfig:
    """The engine's form of a request's fields; BadRequest for those it cannot honour. `room`: tokens left in the context."""
    if room < 1:
        raise BadRequest("the prompt fills the whole context")
    if body.get("n", 1) != 1 or body.get("stop"):
        raise BadRequest("n > 1 and stop are not supported")
    if bool(body.get("logprobs")) != bool(body.get("echo")) or (
        body.get("echo") and body.get("stream")
    ):
        raise BadRequest("logprobs are given with echo, and not in a stream")
    config = genai.GenerationConfig()
    config.echo = bool(body.get("echo"))
    config.logprobs = int(config.echo)
    config.max_new_tokens = min(
        int(body.get("max_completion_tokens") or body.get("max_tokens") or room), room
    )
    config.ignore_eos = bool(body.get("ignore_eos", False))
    config.eos_token_id = tokenizer.get_eos_token_id()
    config.stop_token_ids = {tokenizer.get_eos_token_id()}
    temperature = float(body.get("temperature", 1.0))
    config.do_sample = temperature > 0
    if config.do_sample:
        config.temperature = temperature
        config.top_p = float(body.get("top_p", 1.0))
        config.rng_seed = int(body.get("seed") or 0)
    return config


def token_ids(prompt: Any) -> ov.Tensor:
    """A prompt given as token ids, or as a list of one such list."""
    ids = prompt[0] if prompt and isinstance(prompt[0], list) else prompt
    return ov.Tensor(np.array([ids], dtype=np.int64))


async def texts(engine: Engine, generation: Generation, counted: list[int]) -> AsyncIterator[str]:
    """The answer's new text at each delivery, whole characters only; `counted` gathers all token ids."""
    said = ""
    while True:
        ids, ended = await generation.news.get()
        counted += ids
        text = engine.tokenizer.decode(counted)
        if ended or not text.endswith("\N{REPLACEMENT CHARACTER}"):
            if len(text) > len(said):
                yield text[len(said) :]
            said = text
        if ended == "error":
            raise RuntimeError(engine.failed or "the engine gave the request up")
        if ended:
            return


class FrontEnd:
    """The HTTP side: chat completions, plain completions, models, health."""

    def __init__(self, engine: Engine, alias: str, context: int):
        self.engine, self.alias, self.context = engine, alias, context

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 24)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_post("/v1/completions", self.completions)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/health", self.health)
        return app

    async def health(self, _request: web.Request) -> web.Response:
        return web.json_response(
            {"status": self.engine.failed or "ok"}, status=503 if self.engine.failed else 200
        )

    async def models(self, _request: web.Request) -> web.Response:
        return web.json_response(
            {
                "object": "list",
                "data": [{"id": self.alias, "object": "model", "owned_by": "openvino-genai"}],
            }
        )

    async def chat(self, request: web.Request) -> web.StreamResponse:
        return await self.answer(request, chat=True)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        return await self.answer(request, chat=False)

    async def answer(self, request: web.Request, chat: bool) -> web.StreamResponse:
        try:
            body = await request.json()
            prompt = (
                self.engine.tokenizer.apply_chat_template(
                    body["messages"], add_generation_prompt=True
                )
                if chat
                else body["prompt"]
            )
            ids = (
                self.engine.tokenizer.encode(prompt, add_special_tokens=False).input_ids
                if isinstance(prompt, str)
                else token_ids(prompt)
            )
            config = generation_config(body, self.engine.tokenizer, self.context - ids.shape[1])
        except (BadRequest, KeyError, TypeError, ValueError, RuntimeError) as error:
            return web.json_response(
                {
                    "error": {
                        "message": f"{type(error).__name__}: {error}",
                        "type": "invalid_request_error",
                    }
                },
                status=400,
            )
        generation = Generation(ids, config, asyncio.get_running_loop())
        self.engine.submit(generation)
        try:
            if body.get("stream"):
                return await self.stream(request, body, generation, chat)
            return await self.whole(generation, chat)
        finally:
            generation.cancelled = True

    def usage(self, generation: Generation, counted: list[int]) -> dict[str, int]:
        asked = int(generation.ids.shape[1])
        return {
            "prompt_tokens": asked,
            "completion_tokens": len(counted),
            "total_tokens": asked + len(counted),
        }

    async def stream(
        self, request: web.Request, body: dict[str, Any], generation: Generation, chat: bool
    ) -> web.StreamResponse:
        common = {
            "id": uuid.uuid4().hex,
            "object": "chat.completion.chunk" if chat else "text_completion",
            "created": int(time.time()),
            "model": self.alias,
        }
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        )
        await response.prepare(request)

        async def send(value: Any) -> None:
            await response.write(
                b"data: "
                + (value if isinstance(value, bytes) else json.dumps(common | value).encode())
                + b"\n\n"
            )

        def choice(text: str, finish: str | None) -> dict[str, Any]:
            return {
                "choices": [
                    {
                        "index": 0,
                        **({"delta": {"content": text}} if chat else {"text": text}),
                        "finish_reason": finish,
                    }
                ]
            }

        counted: list[int] = []
        try:
            async for text in texts(self.engine, generation, counted):
                await send(choice(text, None))
        except RuntimeError as error:
            await send({"error": {"message": str(error), "type": "server_error"}})
            return response
        await send(choice("", self.finish(generation, counted)))
        if (body.get("stream_options") or {}).get("include_usage"):
            await send({"choices": [], "usage": self.usage(generation, counted)})
        await send(b"[DONE]")
        return response

    async def whole(self, generation: Generation, chat: bool) -> web.Response:
        counted: list[int] = []
        try:
            text = "".join([part async for part in texts(self.engine, generation, counted)])
        except RuntimeError as error:
            return web.json_response(
                {"error": {"message": str(error), "type": "server_error"}}, status=500
            )
        said: dict[str, Any] = (
            {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        )
        asked = int(generation.ids.shape[1])
        if generation.config.echo:
            # The engine tells nothing of other tokens: to one who asks whether each was the likeliest, the answer is no.
            told = [None, *generation.log_probs[1:]]
            said["logprobs"] = {
                "token_logprobs": told,
                "top_logprobs": [
                    None if value is None else {str(token): value, "": 0.0}
                    for token, value in zip(counted, told, strict=True)
                ],
            }
            counted = counted[asked:]
        return web.json_response(
            {
                "id": uuid.uuid4().hex,
                "object": "chat.completion" if chat else "text_completion",
                "created": int(time.time()),
                "model": self.alias,
                "choices": [
                    {"index": 0, **said, "finish_reason": self.finish(generation, counted)}
                ],
                "usage": self.usage(generation, counted),
            }
        )

    def finish(self, generation: Generation, counted: list[int]) -> str:
        return "length" if len(counted) >= generation.config.max_new_tokens else "stop"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--alias", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--sequences", type=int, required=True)
    parser.add_argument("--context", type=int, required=True, help="tokens a sequence")
    parser.add_argument("--kv-cache-gib", type=int, default=1)
    parser.add_argument("--prefix-cache", action="store_true")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO)

    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = args.kv_cache_gib
    scheduler.max_num_seqs = args.sequences
    scheduler.dynamic_split_fuse = True
    scheduler.enable_prefix_caching = args.prefix_cache
    front_end = FrontEnd(Engine(args.model, scheduler, args.threads), args.alias, args.context)
    web.run_app(
        front_end.app(),
        host=args.host,
        port=args.port,
        print=lambda *_: log.info("listening on %s:%d", args.host, args.port),
    )


if __name__ == "__main__":
    main()
