"""Backends: one file each, found by its name. A backend knows its server; it knows no runtime, no load, no Snakemake.

A file gives what the class Adapter below lists. What a server program of our own needs lies in scripts/foreign/<name>_server.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from foreign import PROGRAMS
from pipeline.artifact import Manifest


@dataclass(frozen=True)
class Serve:
    """What a server is told, in words common to all backends.

    `engine` is what `build` made, `python` the interpreter, `programs` the folder of our own programs, all as the
    server sees them: in a container they lie elsewhere.
    `equal`: whether max_sequences, prefix_caching and gpu_memory_share are to be set, or left to the backend's defaults.
    """

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
    equal: bool = True
    device: str = "cpu"
    dtype: str = "auto"
    tensor_parallel: int = 1
    gpu_memory_share: float = 0.9
    prefix_caching: bool = False
    trust_remote_code: bool = False
    host: str = "127.0.0.1"
    programs: Path = PROGRAMS


@dataclass(frozen=True)
class Build:
    """What an engine is built from and for: `weights` as the builder sees them, `folder` where the engine goes.

    `type` is the quantization's own word, such as int4_awq; `programs` that of our own programs.
    """

    weights: Manifest
    folder: Path
    python: str
    method: str
    type: str | None
    context_length: int
    max_sequences: int
    dtype: str
    tensor_parallel: int
    options: Any
    trust_remote_code: bool = False
    programs: Path = PROGRAMS


@dataclass(frozen=True)
class Command:
    """A process to start: argument vector and additions to its environment.

    `through_entrypoint`: in a container these are arguments of the image's own entry point, which sets things up first.
    """

    argv: list[str]
    env: dict[str, str]
    through_entrypoint: bool = False


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


@dataclass(frozen=True)
class Likelihood:
    """How a server tells how likely it finds a text of given token ids.

    `ask` gives the requests (path, JSON body), to be sent one after the other; `read` takes their answers and gives the natural
    logarithm of the probability of each id but the first, after those before it. `harness`: whether this is the way that
    lm-evaluation-harness asks, so that its tasks can be scored.
    """

    ask: Callable[[list[int], Serve], list[tuple[str, dict[str, Any]]]]
    read: Callable[[list[int], list[Any]], list[float]]
    harness: bool = False


class Adapter(Protocol):
    """The facts and functions that a file of this folder gives.

    ENVIRONMENT   lock in envs/ that it runs in as a process; 'pipeline' is the pipeline's own; None where it has neither
    IMAGE         image that upstream publishes, or None
    CONTAINER     folder of containers/ to build an image from where there is none, or None
    DEVICES       what it computes on: 'cpu', 'gpu'
    WEIGHTS       forms of the model it loads or builds from, the preferred first: 'hf', 'openvino' (folders), 'gguf' (a file)
    METHODS       quantization methods of its own build
    LAYOUTS       quantized checkpoints it loads: by the quant_method of their config.json, 'gguf', 'openvino'
    READY         path that answers 200 once the server can answer requests
    INFO          paths whose JSON says how the server is set up, kept with the cell
    METRICS       path of its own metrics, or None
    FORCES_LENGTH whether a request can ask for exactly max_tokens tokens
    CACHE         environment variable that names the folder of its compile cache, or None
    LIKELIHOOD    how it tells how likely it finds a text, or None where its API does not
    Options       frozen dataclass of its own options, plain types with defaults
    RESET         may be left out: path that empties its prefix cache when it is posted to
    PROGRAMS      may be left out: files of scripts/foreign that its build runs
    """

    ENVIRONMENT: str | None
    IMAGE: str | None
    CONTAINER: str | None
    DEVICES: frozenset[str]
    WEIGHTS: tuple[str, ...]
    METHODS: frozenset[str]
    LAYOUTS: frozenset[str]
    READY: str
    INFO: tuple[str, ...]
    METRICS: str | None
    FORCES_LENGTH: bool
    CACHE: str | None
    LIKELIHOOD: Likelihood | None
    Options: Any

    @staticmethod
    def builds(options: Any) -> bool:
        """Whether there may be anything to build; if ever there is, the file gives `steps` as well."""

    @staticmethod
    def steps(build: Build) -> list[Command]:
        """The commands that make the engine in build.folder, in order; none where these weights are served as they are."""

    @staticmethod
    def command(serve: Serve) -> Command:
        """How the server is started."""

    @staticmethod
    def request(ask: Ask, serve: Serve) -> tuple[str, dict[str, Any]]:
        """Path and JSON body of a streaming request."""

    @staticmethod
    def realised(log: str, info: dict[str, Any]) -> dict[str, Any]:
        """What the running server says of itself, by its log and its INFO answers: {max_sequences, kv_cache_tokens, dtype,
        prefix_caching, quantization, kernel, version, ...}, as far as it says it."""


def names() -> list[str]:
    """Every backend there is: the files of this folder."""
    return sorted(
        path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__"
    )


def load(name: str) -> Adapter:
    return cast(Adapter, import_module(f"backends.{name}"))


def reset_of(name: str) -> str | None:
    """The path that empties a backend's prefix cache; None where there is none."""
    path: str | None = getattr(load(name), "RESET", None)
    return path


def programs_of_build(name: str) -> list[str]:
    """The programs of ours that a backend's build runs, relative to scripts/."""
    return [f"foreign/{program}" for program in getattr(load(name), "PROGRAMS", ())]


def never(_options: Any) -> bool:
    """The `builds` of a backend that loads the model as it is."""
    return False


def loaded_as_it_is(model: Manifest, weights: str) -> dict[str, Any]:
    """Facts of an engine that is the model itself: no bytes are copied."""
    told: dict[str, Any] = {
        name: model.facts[name] for name in ("origin", "random", "layout") if name in model.facts
    }
    return {
        "path": model.path,
        "files": model.files,
        weights: model.facts[weights],
        "form": model.facts[f"{weights}_form"],
        **told,
    }


def says_nothing(_log: str, _info: dict[str, Any]) -> dict[str, Any]:
    """The `realised` of a server that does not tell how it is set up."""
    return {}


def openai_chat(ask: Ask, serve: Serve) -> tuple[str, dict[str, Any]]:
    """OpenAI's chat completions, streamed, with usage; the fields are those of its public reference."""
    messages = (
        [{"role": "system", "content": ask.system_prompt}] if ask.system_prompt is not None else []
    )
    messages += [
        {"role": ("user", "assistant")[number % 2], "content": text}
        for number, text in enumerate((*ask.earlier, ask.prompt))
    ]
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


def openai_chat_min_tokens(ask: Ask, serve: Serve) -> tuple[str, dict[str, Any]]:
    """`openai_chat_ignore_eos` with `min_tokens` beside it, for servers that know both."""
    path, body = openai_chat_ignore_eos(ask, serve)
    return path, body | ({"min_tokens": ask.max_tokens} if ask.forced else {})


def echo(ids: list[int], serve: Serve) -> list[tuple[str, dict[str, Any]]]:
    """OpenAI's plain completions with `echo` and `logprobs`: the prompt comes back with the probability of each of its tokens."""
    return [
        (
            "/v1/completions",
            {
                "model": serve.served_name,
                "prompt": ids,
                "max_tokens": 1,
                "temperature": 0,
                "echo": True,
                "logprobs": 1,
            },
        )
    ]


def read_echo(ids: list[int], answers: list[Any]) -> list[float]:
    return [
        float(value)
        for value in answers[0]["choices"][0]["logprobs"]["token_logprobs"][1 : len(ids)]
    ]


ECHO = Likelihood(echo, read_echo, harness=True)
