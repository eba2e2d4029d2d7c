"""OpenVINO GenAI's continuous batching, behind the HTTP front end of ours in scripts/servers/openvino_server.py."""

from __future__ import annotations

from dataclasses import dataclass

from backends import Command, Serve, never, openai_chat_ignore_eos, says_nothing

ENVIRONMENT = "openvino"
IMAGE = None
CONTAINER = "python"
DEVICES = frozenset({"cpu"})
WEIGHTS = "gguf"
METHODS = frozenset({"none", "gguf"})
LAYOUTS: frozenset[str] = frozenset()
READY = "/health"
INFO = ()
METRICS = None
FORCES_LENGTH = True
CACHE = None

builds = never
realised = says_nothing
request = openai_chat_ignore_eos


@dataclass(frozen=True)
class Options:
    """`kv_cache_gib`: memory for keys and values."""

    kv_cache_gib: int = 1


def command(serve: Serve) -> Command:
    argv = [serve.python, str(serve.programs / "openvino_server.py"), "--model", str(serve.engine.file("gguf")), "--alias", serve.served_name]
    argv += ["--host", serve.host, "--port", str(serve.port), "--threads", str(serve.threads)]
    argv += ["--sequences", str(serve.max_sequences), "--context", str(serve.context_length), "--kv-cache-gib", str(serve.options.kv_cache_gib)]
    return Command(argv + (["--prefix-cache"] if serve.prefix_caching else []) + list(serve.args), {})
