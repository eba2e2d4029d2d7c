"""llama.cpp's own HTTP server, from the wheel `xllamacpp`; scripts/foreign/llamacpp_server.py starts it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from backends import Command, Likelihood, Serve, never, openai_chat_ignore_eos

ENVIRONMENT = "llamacpp"
IMAGE = None
CONTAINER = "python"
DEVICES = frozenset({"cpu"})
WEIGHTS = ("gguf",)
METHODS: frozenset[str] = frozenset()
LAYOUTS = frozenset({"gguf"})
READY = "/health"
INFO = ("/props",)
METRICS = "/metrics"
FORCES_LENGTH = True
CACHE = None

builds = never
request = openai_chat_ignore_eos


@dataclass(frozen=True)
class Options:
    """None."""


def command(serve: Serve) -> Command:
    """Threads default to one core less than there are: with a thread a core its spin barriers collapse beside any other load."""
    argv = [
        serve.python,
        str(serve.programs / "llamacpp_server.py"),
        "--model",
        str(serve.engine.file("gguf")),
        "--alias",
        serve.served_name,
    ]
    argv += ["--host", serve.host, "--port", str(serve.port), "--threads", str(serve.threads)]
    argv += ["--sequences", str(serve.max_sequences), "--context", str(serve.context_length)]
    return Command(
        argv + (["--prefix-cache"] if serve.prefix_caching else []) + list(serve.args), {}
    )


FORCED = 1e6


def forced(ids: list[int], _serve: Serve) -> list[tuple[str, dict[str, Any]]]:
    """One request a token, since the server tells probabilities of what it generates alone: it is made to generate the next
    token of the text by a bias that no other can outweigh. What it tells is from before the bias (`post_sampling_probs` is
    false), and what was computed for the tokens before is kept, so that each request computes one token."""
    common = {"n_predict": 1, "n_probs": 1, "temperature": 0, "cache_prompt": True}
    return [
        ("/completion", common | {"prompt": ids[:end], "logit_bias": [[ids[end], FORCED]]})
        for end in range(1, len(ids))
    ]


def read_forced(ids: list[int], answers: list[Any]) -> list[float]:
    told = [answer["completion_probabilities"][0] for answer in answers]
    if [entry["id"] for entry in told] != ids[1:]:
        raise ValueError("the server generated other tokens than it was made to")
    return [float(entry["logprob"]) for entry in told]


LIKELIHOOD = Likelihood(forced, read_forced)


def realised(_log: str, info: dict[str, Any]) -> dict[str, Any]:
    """From /props: slots, and the context of each."""
    told = info.get("/props", {})
    found = {
        "max_sequences": told.get("total_slots"),
        "context_length": told.get("default_generation_settings", {}).get("n_ctx"),
        "version": told.get("build_info"),
    }
    return {name: value for name, value in found.items() if value is not None}
