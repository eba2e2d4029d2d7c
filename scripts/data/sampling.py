"""Which rows of a file or a trace become prompts: read, joined, filtered by length in the model's own tokens, drawn from the seed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from models import hub
from pipeline.failure import Failure
from pipeline.spec import Prompts

# What data sets call the one who asks.
USER = ("user", "human", "prompter")


def rows(path: Path, prompts: Prompts) -> list[dict[str, Any]]:
    """The rows of a JSON lines or Parquet file; Failure where one is not JSON, lacks a column, or holds what no prompt is made of."""
    found = []
    for where, row in numbered(path):
        asked = [prompts.turns] if prompts.turns else list(prompts.columns)
        missing = [column for column in asked if column not in row]
        if missing:
            raise Failure(
                "no_prompts",
                f"{path.name}, {where}: no column {', '.join(missing)}; there are {', '.join(row)}.",
                f"Correct `{'turns' if prompts.turns else 'columns'}` of the prompts in the configuration.",
            )
        try:
            said = turns(row, prompts)
        except (AttributeError, TypeError, KeyError) as error:
            what = (
                "a list of texts, or of messages with role and content (or from and value)"
                if prompts.turns
                else "text"
            )
            raise Failure(
                "no_prompts",
                f"{path.name}, {where}: column {', '.join(asked)} does not hold {what}.",
                "Name other columns.",
            ) from error
        if any("\0" in text for text in said):
            raise Failure(
                "no_prompts",
                f"{path.name}, {where}: it holds a NUL character.",
                "Take it out: no chat holds one.",
            )
        found.append(row)
    return found


def numbered(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row of a file and where it stands."""
    if path.suffix == ".parquet":
        try:
            table = pq.read_table(path)
        except pa.ArrowInvalid as error:
            raise Failure(
                "no_prompts",
                f"{path.name} is not a whole Parquet file: {error}.",
                "Name another file, or fetch it again.",
            ) from error
        yield from ((f"row {number}", row) for number, row in enumerate(table.to_pylist(), 1))
        return
    try:
        lines = path.read_text().split(
            "\n"
        )  # not splitlines, which also splits at characters that JSON may hold
    except UnicodeDecodeError as error:
        raise Failure(
            "no_prompts",
            f"{path.name} is not UTF-8 text: {error}.",
            "Name a file of JSON lines, or a *.parquet file.",
        ) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise Failure(
                "no_prompts",
                f"{path.name}, line {number}: not JSON: {error}.",
                "Each line must be one JSON object.",
            ) from error
        if not isinstance(row, dict):
            raise Failure(
                "no_prompts",
                f"{path.name}, line {number}: not an object with columns.",
                "Each line must be one JSON object.",
            )
        yield f"line {number}", row


def from_hub(prompts: Prompts) -> Path:
    """The one file of a data set that the prompts come from."""
    assert prompts.repo_id and prompts.revision and prompts.file
    file = prompts.file

    def only(names: list[str]) -> list[str]:
        if file not in names:
            offered = [name for name in sorted(names) if name.endswith((".jsonl", ".parquet"))]
            raise Failure(
                "no_prompts",
                f"data set {prompts.repo_id} has no file {file}.",
                f"It has: {', '.join(offered[:20]) or 'neither JSON lines nor Parquet'}.",
            )
        return [file]

    folder, _ = hub.fetch(hub.Repository("dataset", prompts.repo_id, prompts.revision), only)
    return folder / file


def turns(row: dict[str, Any], prompts: Prompts) -> list[str]:
    """What the user says in one row, turn by turn: its non-empty columns joined, or the list that stands in the column `turns`,
    of texts or of messages (role and content, or ShareGPT's from and value), of which the user's count."""
    if prompts.turns:
        said = [
            turn
            for turn in row[prompts.turns]
            if isinstance(turn, str) or turn.get("role", turn.get("from")) in USER
        ]
        return [
            (
                turn
                if isinstance(turn, str)
                else turn["content"]
                if "content" in turn
                else turn["value"]
            ).strip()
            for turn in said
        ]
    texts = [(row[column] or "").strip() for column in prompts.columns]
    return [prompts.join.join(text for text in texts if text)]


def choose(
    rows: list[dict[str, Any]], prompts: Prompts, seed: int, count_tokens: Callable[[str], int]
) -> list[dict[str, Any]]:
    """The chosen prompts in drawn order: {id, turns, tokens, category}; `id` is the row's number in the source, from 0, and
    `tokens` counts all turns of the user.

    Failure `no_prompts` if none has a length between the bounds.
    """
    offered = [turns(row, prompts) for row in rows]
    lengths = [sum(count_tokens(turn) for turn in said) for said in offered]
    fitting = [
        {"id": number, "turns": said, "tokens": length, "category": row.get("category", "")}
        for number, (row, said, length) in enumerate(zip(rows, offered, lengths, strict=True))
        if said and all(said) and prompts.min_tokens <= length <= prompts.max_tokens
    ]
    if not fitting:
        raise none_fits(prompts, lengths)
    return random.Random(seed).sample(fitting, min(prompts.count or len(fitting), len(fitting)))


def none_fits(prompts: Prompts, lengths: list[int]) -> Failure:
    span = f"they have {min(lengths)} to {max(lengths)}" if lengths else "there are none"
    return Failure(
        "no_prompts",
        f"No prompt has between {prompts.min_tokens} and {prompts.max_tokens} tokens; {span}.",
        "Widen min_tokens and max_tokens of the workload's prompts.",
    )
