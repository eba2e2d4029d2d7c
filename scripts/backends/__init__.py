"""Backends: one file each, found by its name. A backend knows its server; it knows no runtime, no load, no Snakemake.

A file gives what the class Adapter below lists. What a server program of our own needs lies in scripts/servers/<name>_server.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from manifest import Manifest


@dataclass(frozen=True)
class Serve:
    """What a server is told, in words common to all backends. `engine` is what `build` made, `python` the interpreter."""

    engine: Manifest
    python: str
    served_name: str
    port: int
    context_length: int
    max_sequences: int
    threads: int
    seed: int
    options: Any
    args: tuple[str, ...]
    trust_remote_code: bool = False
    host: str = "127.0.0.1"


@dataclass(frozen=True)
class Command:
    """A process to start: argument vector and additions to its environment."""

    argv: list[str]
    env: dict[str, str]


@dataclass(frozen=True)
class Ask:
    """One prompt to be answered, in words common to all backends.

    `earlier`: what was said before it, user and assistant in turn. `forced`: the answer has max_tokens tokens, neither fewer nor more.
    """

    prompt: str
    earlier: tuple[str, ...]
    system_prompt: str | None
    max_tokens: int
    forced: bool
    temperature: float
    seed: int


class Adapter(Protocol):
    """The facts and functions that a file of this folder gives.

    ENVIRONMENT   lock in envs/ that it runs in; None for the pipeline's own
    WEIGHTS       form of the model it loads: 'hf' (a folder) or 'gguf' (a file)
    METHODS       quantization methods it serves
    READY         path that answers 200 once the server can answer requests
    FORCES_LENGTH whether a request can ask for exactly max_tokens tokens
    Options       frozen dataclass of its own options, plain types with defaults
    """

    ENVIRONMENT: str | None
    WEIGHTS: str
    METHODS: frozenset[str]
    READY: str
    FORCES_LENGTH: bool
    Options: Any

    @staticmethod
    def build(model: Manifest, folder: Path) -> dict[str, Any]:
        """Make the engine in `folder` and return its facts."""

    @staticmethod
    def command(serve: Serve) -> Command:
        """How the server is started."""

    @staticmethod
    def request(ask: Ask, serve: Serve) -> tuple[str, dict[str, Any]]:
        """Path and JSON body of a streaming request."""


def names() -> list[str]:
    """Every backend there is: the files of this folder."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")


def load(name: str) -> Adapter:
    return cast(Adapter, import_module(f"backends.{name}"))


def nothing_to_build(weights: str) -> Callable[[Manifest, Path], dict[str, Any]]:
    """The `build` of a backend that loads the model as it is: the engine is the model, no bytes are copied."""

    def build(model: Manifest, _folder: Path) -> dict[str, Any]:
        told: dict[str, Any] = {name: model.facts[name] for name in ("origin", "random") if name in model.facts}
        return {"path": model.path, "files": model.files, weights: model.facts[weights], "form": model.facts[f"{weights}_form"], **told}

    return build


def openai_chat(ask: Ask, serve: Serve) -> tuple[str, dict[str, Any]]:
    """OpenAI's chat completions, streamed, with usage; the fields are those of its public reference."""
    messages = [{"role": "system", "content": ask.system_prompt}] if ask.system_prompt is not None else []
    messages += [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate((*ask.earlier, ask.prompt))]
    return "/v1/chat/completions", {
        "model": serve.served_name,
        "messages": messages,
        "max_tokens": ask.max_tokens,
        "temperature": ask.temperature,
        "seed": ask.seed,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def openai_chat_ignore_eos(ask: Ask, serve: Serve) -> tuple[str, dict[str, Any]]:
    """`openai_chat` with the extension `ignore_eos` that vLLM, llama.cpp and others take: with it an answer ends at max_tokens only."""
    path, body = openai_chat(ask, serve)
    return path, body | ({"ignore_eos": True} if ask.forced else {})
