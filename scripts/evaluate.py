"""Is what was timed any good? Reads the answers of one cell and counts what is wrong with them."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import job
from manifest import write_json
from metrics.records import read
from metrics.stream import answer

NGRAM = 4
REPEATS = 4
BROKEN_SHARE = 0.1
EXAMPLES = 3


def flaws(text: str) -> list[str]:
    """What is wrong with one answer: 'empty', 'undecodable' (replacement characters), 'unprintable', 'repetitive'.

    Repetitive: some sequence of 4 words stands in it more than 4 times, and these repetitions make up half of it.
    """
    if not text.strip():
        return ["empty"]
    found = []
    if "\N{REPLACEMENT CHARACTER}" in text:
        found.append("undecodable")
    if any(unicodedata.category(character) in ("Cc", "Co", "Cn") and character not in "\n\r\t" for character in text):
        found.append("unprintable")
    words = re.findall(r"\w+", text.lower())
    ngrams = Counter(tuple(words[start : start + NGRAM]) for start in range(len(words) - NGRAM + 1))
    if ngrams and (most := ngrams.most_common(1)[0][1]) > REPEATS and most * NGRAM >= len(words) / 2:
        found.append("repetitive")
    return found


def evaluate(texts: list[str]) -> dict[str, Any]:
    """Shares of flawed answers, and whether so many are that the cell's speed means nothing."""
    counts = Counter(flaw for text in texts for flaw in flaws(text))
    broken = sum(bool(flaws(text)) for text in texts)
    return {
        "answers": len(texts),
        "flaws": dict(counts),
        "flawed_share": broken / len(texts) if texts else None,
        "broken": bool(texts) and broken / len(texts) > BROKEN_SHARE,
        "examples": texts[:EXAMPLES],
    }


def answers(records: Path) -> list[str]:
    """The texts of the requests of the load that were completed."""
    table = read(records)
    complete = table[(table.phase == "load") & (table.outcome == "complete")]
    return ["".join(event.text for event in answer(row.wire, row.read_ns, row.read_bytes)[0]) for row in complete.itertuples()]


def main() -> None:
    args = job.arguments(__doc__, "cell")
    cell = json.loads(args.cell.read_text())
    judged = not cell["failure"] and not cell.get("random")
    write_json(args.output, evaluate(answers(args.cell.with_name("records.arrow")) if judged else []))


if __name__ == "__main__":
    main()
