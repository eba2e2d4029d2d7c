"""OpenVINO GenAI's continuous batching, behind the HTTP front end of ours in scripts/foreign/openvino_server.py.

It loads what its own exporter wrote, or a GGUF.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends import ECHO, Build, Command, Serve, openai_chat_ignore_eos, says_nothing

ENVIRONMENT = "openvino"
IMAGE = None
CONTAINER = "python"
DEVICES = frozenset({"cpu"})
WEIGHTS = ("openvino", "gguf")
METHODS: frozenset[str] = frozenset()
LAYOUTS = frozenset({"gguf", "openvino"})
READY = "/health"
INFO = ()
METRICS = None
PROGRAMS = ("requantize.py",)
FORCES_LENGTH = True
CACHE = None
LIKELIHOOD = ECHO

# GGUF types that its reader cannot hold: it rounds their minimum, a float, to a whole number of steps, which costs SmolLM2-135M a
# quarter of its perplexity. In 16 bits it reads the same numbers without loss.
ROUNDED = ("Q4_1", "Q5_1")

realised = says_nothing
request = openai_chat_ignore_eos


@dataclass(frozen=True)
class Options:
    """`kv_cache_gib`: memory for keys and values."""

    kv_cache_gib: int = 1


def builds(_options: Any) -> bool:
    """Always possible; `steps` sees from the weights whether it is needed."""
    return True


def steps(build: Build) -> list[Command]:
    facts = build.weights.facts
    if "openvino" in facts or facts.get("gguf_type") not in ROUNDED:
        return []
    return [
        Command(
            [
                build.python,
                str(build.programs / "requantize.py"),
                str(build.weights.file("gguf")),
                str(build.folder / "model.gguf"),
                "F16",
            ],
            {},
        )
    ]


def model(serve: Serve) -> Path:
    facts = serve.engine.facts
    return (
        serve.engine.file("engine") / "model.gguf"
        if "engine" in facts
        else serve.engine.file("openvino" if "openvino" in facts else "gguf")
    )


def command(serve: Serve) -> Command:
    argv = [
        serve.python,
        str(serve.programs / "openvino_server.py"),
        "--model",
        str(model(serve)),
        "--alias",
        serve.served_name,
    ]
    argv += ["--host", serve.host, "--port", str(serve.port), "--threads", str(serve.threads)]
    argv += [
        "--sequences",
        str(serve.max_sequences),
        "--context",
        str(serve.context_length),
        "--kv-cache-gib",
        str(serve.options.kv_cache_gib),
    ]
    return Command(
        argv + (["--prefix-cache"] if serve.prefix_caching else []) + list(serve.args), {}
    )
