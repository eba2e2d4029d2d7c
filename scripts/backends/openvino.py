"""OpenVINO GenAI's continuous batching, behind the HTTP front end of ours in scripts/servers/openvino_server.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from backends import Command, Serve, nothing_to_build, openai_chat_ignore_eos

ENVIRONMENT = "openvino"
WEIGHTS = "gguf"
METHODS = frozenset({"none", "gguf"})
READY = "/health"
FORCES_LENGTH = True

build = nothing_to_build(WEIGHTS)
request = openai_chat_ignore_eos


@dataclass(frozen=True)
class Options:
    """`kv_cache_gib`: memory for keys and values. `prefix_cache`: reuse those of a common beginning."""

    kv_cache_gib: int = 1
    prefix_cache: bool = False


def command(serve: Serve) -> Command:
    program = Path(__file__).parent.parent / "servers" / "openvino_server.py"
    argv = [serve.python, str(program), "--model", str(serve.engine.file("gguf")), "--alias", serve.served_name]
    argv += ["--host", serve.host, "--port", str(serve.port), "--threads", str(serve.threads)]
    argv += ["--sequences", str(serve.max_sequences), "--context", str(serve.context_length), "--kv-cache-gib", str(serve.options.kv_cache_gib)]
    return Command(argv + (["--prefix-cache"] if serve.options.prefix_cache else []) + list(serve.args), {})
