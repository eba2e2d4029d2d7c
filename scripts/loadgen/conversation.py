"""Conversations of several turns, whose later requests hold the answers to the earlier ones."""

from __future__ import annotations

import json
import re
from typing import Any

from loadgen import wire

# A turn's body as parts of JSON text; an integer stands for the answer to that turn, inside quotes.
Template = list[str | int]
SLOT = re.compile(r"\\u0000(\d+)\\u0000")


def slot(turn: int) -> str:
    """What stands in a body's text where the answer to a turn is to be put in; no prompt may hold NUL."""
    return f"\0{turn}\0"


def template(body: dict[str, Any]) -> Template:
    """A body as JSON, cut at its slots."""
    parts = SLOT.split(json.dumps(body))
    return [int(part) if number % 2 else part for number, part in enumerate(parts)]


def fill(made: Template, answers: list[str]) -> bytes:
    """The body with the answers so far put in."""
    return "".join(
        json.dumps(answers[part])[1:-1] if isinstance(part, int) else part for part in made
    ).encode()


def answer(received: bytes) -> str:
    """The text of a streamed answer, as OpenAI's chat and plain completions write it; reasoning is not kept in a context."""
    body, _, _ = wire.body(received, [len(received)])
    said = []
    for _, data in wire.frames(body):
        try:
            [choice] = json.loads(data)["choices"]
            said.append((choice.get("delta") or {}).get("content") or choice.get("text") or "")
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return "".join(said)
