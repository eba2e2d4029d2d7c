"""llama.cpp's own HTTP server, from the wheel `xllamacpp`; scripts/servers/llamacpp_server.py starts it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from backends import Command, Serve, never, openai_chat_ignore_eos

ENVIRONMENT = "llamacpp"
IMAGE = None
CONTAINER = "python"
DEVICES = frozenset({"cpu"})
WEIGHTS = "gguf"
METHODS = frozenset({"none", "gguf"})
LAYOUTS: frozenset[str] = frozenset()
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
    argv = [serve.python, str(serve.programs / "llamacpp_server.py"), "--model", str(serve.engine.file("gguf")), "--alias", serve.served_name]
    argv += ["--host", serve.host, "--port", str(serve.port), "--threads", str(serve.threads)]
    argv += ["--sequences", str(serve.max_sequences), "--context", str(serve.context_length)]
    return Command(argv + (["--prefix-cache"] if serve.prefix_caching else []) + list(serve.args), {})


def realised(_log: str, info: dict[str, Any]) -> dict[str, Any]:
    """From /props: slots, and the context of each."""
    told = info.get("/props", {})
    found = {"max_sequences": told.get("total_slots"), "context_length": told.get("default_generation_settings", {}).get("n_ctx"), "version": told.get("build_info")}
    return {name: value for name, value in found.items() if value is not None}
