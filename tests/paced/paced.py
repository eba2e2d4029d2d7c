"""A fake backend for tests: the paced server, whose time to first token, token gap and faults are known."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from backends import Command, Serve, nothing_to_build, openai_chat

ENVIRONMENT = None
WEIGHTS = "hf"
METHODS = frozenset({"none"})
READY = "/health"
FORCES_LENGTH = True

build = nothing_to_build(WEIGHTS)
request = openai_chat


@dataclass(frozen=True)
class Options:
    ttft_ms: float = 30.0
    gap_ms: float = 5.0
    tokens: int = 8
    fault: str = "none"
    fault_after: int = 0


def command(serve: Serve) -> Command:
    program = Path(__file__).parent.parent / "servers" / "paced_server.py"
    options = [part for name, value in asdict(serve.options).items() for part in (f"--{name.replace('_', '-')}", str(value))]
    return Command([serve.python, str(program), "--port", str(serve.port), *options, *serve.args], {})
