"""Traces of real traffic: when each request came and how long it was. The texts are not published; ours are made up.

azure     CSV with TIMESTAMP, ContextTokens, GeneratedTokens (github.com/Azure/AzurePublicDataset, LLM inference traces)
mooncake  JSON lines with timestamp (ms), input_length, output_length and hash_ids, one for each 512 tokens of the prompt:
          equal ids are equal text, so prefix caches meet what they met (github.com/kvcache-ai/Mooncake)
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from data.sampling import none_fits
from pipeline.failure import Failure
from pipeline.spec import Prompts

BLOCK = 512
# A text is put together from passages of so many tokens, so that two texts share no long beginning by chance.
PASSAGE = 64


@dataclass(frozen=True)
class Arrival:
    """One request of a trace: seconds since its first one, tokens asked, tokens answered, the identities of its blocks (or none)."""

    at_s: float
    isl: int
    osl: int
    blocks: tuple[int, ...] = ()


def azure(path: Path) -> Iterator[Arrival]:
    with path.open(newline="") as source:
        start = None
        for row in csv.DictReader(source):
            # Seven digits of a second, which fromisoformat does not read in Python 3.11.
            whole, _, fraction = row["TIMESTAMP"].partition(".")
            at = datetime.fromisoformat(whole).timestamp() + float(
                f"0.{fraction[:9] or 0}".split("+")[0]
            )
            start = at if start is None else start
            yield Arrival(at - start, int(row["ContextTokens"]), int(row["GeneratedTokens"]))


def mooncake(path: Path) -> Iterator[Arrival]:
    with path.open() as source:
        start = None
        for line in source:
            row = json.loads(line)
            at = row["timestamp"] / 1000
            start = at if start is None else start
            yield Arrival(
                at - start,
                row["input_length"],
                row["output_length"],
                tuple(row.get("hash_ids", ())),
            )


LAYOUTS: dict[str, Callable[[Path], Iterator[Arrival]]] = {"azure": azure, "mooncake": mooncake}


def read(path: Path, layout: str, count: int | None) -> list[Arrival]:
    """The first `count` requests of a trace; Failure `no_prompts` where it is not of that layout or does not go forward in time."""
    found: list[Arrival] = []
    try:
        for arrival in itertools.islice(LAYOUTS[layout](path), count):
            if found and arrival.at_s < found[-1].at_s:
                raise ValueError("its time goes back; sort the trace by time")
            if arrival.isl < 1 or arrival.osl < 1:
                raise ValueError(f"a request of {arrival.isl} tokens answered by {arrival.osl}")
            found.append(arrival)
    except (KeyError, ValueError, TypeError) as error:
        what = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        raise Failure(
            "no_prompts",
            f"{path.name}, request {len(found) + 1}: not the layout '{layout}': {what}.",
            "Correct `layout` of the prompts, or the file.",
        ) from error
    return found


class Passages:
    """Texts of a wanted length in tokens, put together from passages of a corpus, the same for the same seed."""

    def __init__(self, corpus: str, tokenizer: Tokenizer):
        self.corpus = corpus
        encoding = tokenizer.encode(corpus, add_special_tokens=False)
        self.spans = encoding.offsets

    def text(self, tokens: int, seed: list[int]) -> str:
        """About `tokens` tokens: at the seams the tokenizer may join or part a few."""
        random, parts = np.random.default_rng(seed), []
        while tokens > 0:
            length = min(tokens, PASSAGE, len(self.spans))
            first = int(random.integers(0, len(self.spans) - length + 1))
            parts.append(self.corpus[self.spans[first][0] : self.spans[first + length - 1][1]])
            tokens -= length
        return " ".join(part.strip() for part in parts)

    def prompt(self, arrival: Arrival, number: int, seed: int) -> str:
        """The text of one request; blocks of the same identity are the same text."""
        if not arrival.blocks:
            return self.text(arrival.isl, [seed, 0, number])
        lengths = [min(BLOCK, arrival.isl - BLOCK * block) for block in range(len(arrival.blocks))]
        return " ".join(
            self.text(length, [seed, 1, block])
            for length, block in zip(lengths, arrival.blocks, strict=True)
            if length > 0
        )


def replay(
    arrivals: list[Arrival],
    prompts: Prompts,
    seed: int,
    passages: Passages,
    count_tokens: Callable[[str], int],
) -> list[dict[str, Any]]:
    """The requests of a trace whose prompts lie between the bounds, in its order: {id, turns, tokens, category, max_tokens, at_s}.

    `max_tokens` is the length of the answer in the trace, `at_s` the seconds since the first request that is kept.
    """
    kept = [
        (number, arrival)
        for number, arrival in enumerate(arrivals)
        if prompts.min_tokens <= arrival.isl <= prompts.max_tokens
    ]
    if not kept:
        raise none_fits(prompts, [arrival.isl for arrival in arrivals])
    made = []
    for number, arrival in kept:
        text = passages.prompt(arrival, number, seed)
        at_s = round(arrival.at_s - kept[0][1].at_s, 6)
        made.append(
            {
                "id": number,
                "turns": [text],
                "tokens": count_tokens(text),
                "category": "",
                "max_tokens": arrival.osl,
                "at_s": at_s,
            }
        )
    return made
