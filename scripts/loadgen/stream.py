"""The bytes of one streamed answer into events, each with the time of the read that completed it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loadgen import wire


@dataclass(frozen=True)
class Event:
    """One event of an OpenAI-style stream. `time_ns`: when the read returned that held its last byte."""

    time_ns: int
    content: str = ""
    reasoning: str = ""
    finish: str | None = None
    usage: dict[str, int] | None = None
    error: str | None = None
    done: bool = False

    @property
    def text(self) -> str:
        """What this event adds to the answer, reasoning included."""
        return self.reasoning + self.content


def answer(
    received: bytes, read_ns: Sequence[int], read_bytes: Sequence[int]
) -> tuple[list[Event], int | None]:
    """Events of a response that arrived in reads of `read_bytes` bytes at `read_ns`, and when its head was complete (ns).

    Any split gives the same texts.
    """
    body, brought, head = wire.body(received, read_bytes)
    ends = np.cumsum(brought)
    events = [
        event(int(read_ns[int(np.searchsorted(ends, end))]), data)
        for end, data in wire.frames(body)
    ]
    return events, None if head is None else int(read_ns[head])


def event(time_ns: int, data: bytes) -> Event:
    """One event's data as OpenAI's chat and plain completions, and the servers that follow them, write it."""
    if data.strip() == b"[DONE]":
        return Event(time_ns, done=True)
    try:
        value = json.loads(data.decode(errors="replace"))
        if not isinstance(value, dict):
            raise ValueError("not an object")
    except ValueError as error:
        return Event(time_ns, error=f"invalid event: {error}")
    if value.get("error"):
        return Event(time_ns, error=_message(value["error"]))
    choice = (value.get("choices") or [{}])[0]
    delta = choice.get("delta") or {}
    return Event(
        time_ns,
        content=delta.get("content") or choice.get("text") or "",
        reasoning=delta.get("reasoning_content") or delta.get("reasoning") or "",
        finish=choice.get("finish_reason"),
        usage=value.get("usage") or None,
    )


def _message(error: Any) -> str:
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
