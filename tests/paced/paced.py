"""A fake backend for tests: the paced server, whose time to first token, token gap and faults are known."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from backends import Command, Serve, never, openai_chat, says_nothing

ENVIRONMENT = "pipeline"
IMAGE = None
CONTAINER = None
DEVICES = frozenset({"cpu"})
WEIGHTS = ("hf",)
METHODS: frozenset[str] = frozenset()
LAYOUTS: frozenset[str] = frozenset()
READY = "/health"
INFO = ()
METRICS = None
CACHE = None
LIKELIHOOD = None
FORCES_LENGTH = True

builds = never
realised = says_nothing
request = openai_chat


@dataclass(frozen=True)
class Options:
    ttft_ms: float = 30.0
    gap_ms: float = 5.0
    tokens: int = 8
    fault: str = "none"
    fault_after: int = 0


def command(serve: Serve) -> Command:
    options = [
        part
        for name, value in asdict(serve.options).items()
        for part in (f"--{name.replace('_', '-')}", str(value))
    ]
    return Command(
        [
            serve.python,
            str(serve.programs / "paced_server.py"),
            "--port",
            str(serve.port),
            *options,
            *serve.args,
        ],
        {},
    )
