"""Choose a workload's prompts: filter by length in the model's own tokens, then draw from the seed."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from tokenizers import Tokenizer

import job
from failure import Failure
from manifest import Manifest
from spec import Prompts, from_json

log = logging.getLogger(__name__)


def rows(path: Path, prompts: Prompts) -> list[dict[str, Any]]:
    """The lines of the source as objects; Failure where one is not JSON or lacks a column."""
    found = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise Failure("no_prompts", f"{path.name}, line {number}: not JSON: {error}.", "Each line must be one JSON object.") from error
        missing = [column for column in prompts.columns if column not in row]
        if missing:
            raise Failure(
                "no_prompts", f"{path.name}, line {number}: no column {', '.join(missing)}; there are {', '.join(row)}.", "Correct `columns` of the prompts in the configuration."
            )
        found.append(row)
    return found


def from_hub(prompts: Prompts) -> Path:
    assert prompts.repo_id and prompts.file
    where = f"data set {prompts.repo_id} at {prompts.revision}"
    try:
        return Path(hf_hub_download(prompts.repo_id, prompts.file, revision=prompts.revision, repo_type="dataset"))
    except (RepositoryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise Failure("download_failed", f"{where}: {type(error).__name__}: {str(error)[:300]}", "See that the hub is reachable, or set HF_ENDPOINT to a mirror.") from error


def choose(rows: list[dict[str, Any]], prompts: Prompts, seed: int, count_tokens: Callable[[str], int]) -> list[dict[str, Any]]:
    """The chosen prompts in drawn order: {id, text, tokens, category}; `id` is the row's number in the source, from 0.

    A prompt is its non-empty columns, joined. Failure `no_prompts` if none has a length between the bounds.
    """
    texts = [prompts.join.join(row[column].strip() for column in prompts.columns if row[column].strip()) for row in rows]
    lengths = [count_tokens(text) for text in texts]
    fitting = [
        {"id": number, "text": text, "tokens": length, "category": row.get("category", "")}
        for number, (row, text, length) in enumerate(zip(rows, texts, lengths, strict=True))
        if text and prompts.min_tokens <= length <= prompts.max_tokens
    ]
    if not fitting:
        span = f"they have {min(lengths)} to {max(lengths)}" if lengths else "there are none"
        raise Failure(
            "no_prompts", f"No prompt has between {prompts.min_tokens} and {prompts.max_tokens} tokens; {span}.", "Widen min_tokens and max_tokens of the workload's prompts."
        )
    return random.Random(seed).sample(fitting, min(prompts.count or len(fitting), len(fitting)))


def write(model: Manifest, prompts: Prompts, source: Path | None, seed: int, folder: Path) -> dict[str, Any]:
    tokenizer = Tokenizer.from_file(str(model.file("hf") / "tokenizer.json"))
    offered = rows(source or from_hub(prompts), prompts)
    chosen = choose(offered, prompts, seed, lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids))
    (folder / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in chosen))
    lengths = sorted(prompt["tokens"] for prompt in chosen)
    return {
        "prompts": "prompts.jsonl",
        "source": source.name if source else f"{prompts.repo_id} at {prompts.revision}",
        "offered": len(offered),
        "chosen": len(chosen),
        "tokens": {"min": lengths[0], "median": lengths[len(lengths) // 2], "max": lengths[-1]},
    }


def main() -> None:
    args = job.arguments(__doc__, "model", "source?")
    model = Manifest.load(args.model)
    prompts: Prompts = from_json(Prompts, args.spec["prompts"])
    job.prepare(args, "prompts", lambda folder: write(model, prompts, args.source, args.spec["seed"], folder), [model])


if __name__ == "__main__":
    main()
