"""Is what was timed any good? What is wrong with the timed answers of one cell."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pandas as pd

from loadgen.stream import answer
from metrics.intervals import share_interval

NGRAM = 4
REPEATS = 4
# Of an answer's characters, so many may be such that no text has before it is no text.
GIBBERISH = 0.1
BROKEN_SHARE = 0.1
EXAMPLES = 3
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Answer:
    """One timed answer: its text, why it ended ('length', 'stop'), the server's own count of its tokens, and the count that was asked for."""

    text: str
    finish: str | None = None
    tokens: int | None = None
    asked: int | None = None


def flaws(answer: Answer, forced: bool = False) -> list[str]:
    """What is wrong with one answer.

    empty          no text
    undecodable    bytes that are no character stand in it
    cut            its last character is not whole, and it was not the limit of tokens that cut it
    unprintable    control characters, or such as no text has
    gibberish      a tenth of it is of these two kinds
    repetitive     some sequence of 4 words stands in it more than 4 times, and these repetitions make up half of it
    too long       more tokens than were asked for
    too short      fewer tokens than were asked for, where exactly so many were, or where it is said to have ended at the limit
    """
    text, found = answer.text, []
    if not text.strip():
        return ["empty"]
    body = text.rstrip(REPLACEMENT)
    if REPLACEMENT in body:
        found.append("undecodable")
    if body != text and answer.finish != "length":
        found.append("cut")
    strange = sum(
        unicodedata.category(character) in ("Cc", "Co", "Cn", "Cs") and character not in "\n\r\t"
        for character in text
    )
    if strange:
        found.append("unprintable")
    if strange + body.count(REPLACEMENT) > GIBBERISH * len(text):
        found.append("gibberish")
    words = re.findall(r"\w+", text.lower())
    ngrams = Counter(tuple(words[start : start + NGRAM]) for start in range(len(words) - NGRAM + 1))
    if (
        ngrams
        and (most := ngrams.most_common(1)[0][1]) > REPEATS
        and most * NGRAM >= len(words) / 2
    ):
        found.append("repetitive")
    if answer.tokens is not None and answer.asked is not None:
        if answer.tokens > answer.asked:
            found.append("too long")
        elif answer.tokens < answer.asked and (forced or answer.finish == "length"):
            found.append("too short")
    return found


def evaluate(answers: list[Answer], forced: bool = False) -> dict[str, Any]:
    """Shares of flawed answers with their interval, and whether so many are, beyond chance, that the cell's speed means nothing."""
    each = [flaws(answer, forced) for answer in answers]
    broken, n = sum(map(bool, each)), len(answers)
    interval = share_interval(broken, n)
    return {
        "answers": n,
        "flaws": dict(Counter(flaw for found in each for flaw in found)),
        "flawed_share": broken / n if n else None,
        "flawed_interval": interval,
        "broken": interval is not None and interval[0] > BROKEN_SHARE,
        "examples": [answer.text for answer in answers[:EXAMPLES]],
    }


def read(records: pd.DataFrame, asked: list[int]) -> list[Answer]:
    """The answers to the requests of the load that were completed; `asked`: of each prompt the tokens that were asked for."""
    complete = records[(records.phase == "load") & (records.outcome == "complete")]
    found = []
    for row in complete.itertuples():
        events = answer(row.wire, row.read_ns, row.read_bytes)[0]
        usage = next((event.usage for event in reversed(events) if event.usage), None) or {}
        finish = next((event.finish for event in reversed(events) if event.finish), None)
        text = "".join(event.text for event in events)
        found.append(Answer(text, finish, usage.get("completion_tokens"), asked[row.prompt]))
    return found
