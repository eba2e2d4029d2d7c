"""Choose a workload's prompts: filter by length in the model's own tokens, then draw from the seed, or keep a trace's order."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from data.sampling import choose, from_hub, rows, turns
from data.traces import Passages, read, replay
from pipeline import stage
from pipeline.artifact import Manifest
from pipeline.spec import Prompts, from_json

log = logging.getLogger(__name__)
# What the prompts of a trace are put together from.
CORPUS = Path(__file__).resolve().parent.parent / "prompts" / "showdown.jsonl"
CORPUS_COLUMNS = Prompts("file", ("context", "instruction"), "\n\n", 0, 0)


def write(
    model: Manifest, prompts: Prompts, source: Path | None, seed: int, folder: Path
) -> dict[str, Any]:
    tokenizer = Tokenizer.from_file(str(model.file("tokenizer") / "tokenizer.json"))

    def count_tokens(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    offered: list[Any]
    if prompts.source == "trace":
        assert source and prompts.layout
        offered = read(source, prompts.layout, prompts.count)
        corpus = " ".join(
            " ".join(turns(row, CORPUS_COLUMNS)) for row in rows(CORPUS, CORPUS_COLUMNS)
        )
        chosen = replay(offered, prompts, seed, Passages(corpus, tokenizer), count_tokens)
    else:
        offered = rows(source or from_hub(prompts), prompts)
        chosen = choose(offered, prompts, seed, count_tokens)
    (folder / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in chosen))
    lengths = sorted(prompt["tokens"] for prompt in chosen)
    return {
        "prompts": "prompts.jsonl",
        "source": source.name if source else f"{prompts.repo_id} at {prompts.revision}",
        "seed": seed,
        "filter": {
            "min_tokens": prompts.min_tokens,
            "max_tokens": prompts.max_tokens,
            "count": prompts.count,
        },
        "offered": len(offered),
        "chosen": len(chosen),
        "turns": max(len(prompt["turns"]) for prompt in chosen),
        "tokens": {"min": lengths[0], "median": lengths[len(lengths) // 2], "max": lengths[-1]},
    }


def main() -> None:
    job = stage.task(__doc__)
    model, source = job.manifest("model"), job.file("source")
    prompts: Prompts = from_json(Prompts, job.spec["prompts"])
    stage.prepare(
        job,
        "prompts",
        lambda folder: write(model, prompts, source, job.spec["seed"], folder),
        [model],
    )


if __name__ == "__main__":
    main()
