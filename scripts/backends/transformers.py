"""Hugging Face transformers' own server with continuous batching: the slow baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from backends import Ask, Command, Serve, never, openai_chat, says_nothing

ENVIRONMENT = "transformers"
IMAGE = None
CONTAINER = "python"
DEVICES = frozenset({"cpu"})
WEIGHTS = ("hf",)
METHODS: frozenset[str] = frozenset()
LAYOUTS = frozenset(
    {"compressed-tensors"}
)  # without zero points: release 5.23 gives their packed form the wrong shape
READY = "/health"
INFO = ()
METRICS = None
FORCES_LENGTH = False
CACHE = None
LIKELIHOOD = None

builds = never
realised = says_nothing


@dataclass(frozen=True)
class Options:
    """Size of the paged cache, in blocks and tokens a block; unset, it takes most of the memory and 17 s for the first answer."""

    block_size: int = 32
    blocks: int = 512
    max_batch_tokens: int = 512


def command(serve: Serve) -> Command:
    options = serve.options
    argv = [
        serve.python,
        "-m",
        "transformers.cli.transformers",
        "serve",
        str(serve.engine.file("hf")),
        "--continuous-batching",
    ]
    argv += [
        "--cb-block-size",
        str(options.block_size),
        "--cb-num-blocks",
        str(options.blocks),
        "--cb-max-batch-tokens",
        str(options.max_batch_tokens),
    ]
    argv += [
        "--device",
        "cpu",
        "--dtype",
        "float32" if serve.dtype == "auto" else serve.dtype,
        "--host",
        serve.host,
        "--port",
        str(serve.port),
    ]
    argv += ["--trust-remote-code"] if serve.trust_remote_code else []
    threads = str(serve.threads)
    return Command(
        argv + list(serve.args),
        {
            "HF_HUB_OFFLINE": "1",
            "DO_NOT_TRACK": "1",
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
        },
    )


def request(ask: Ask, serve: Serve) -> tuple[str, dict[str, Any]]:
    """It answers unknown fields, ignore_eos and seed among them, with 422, and knows its model by the path it was given."""
    path, body = openai_chat(ask, serve)
    del body["seed"]
    return path, body | {"model": str(serve.engine.file("hf"))}
