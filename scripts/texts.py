"""The fixed texts of a model: blocks of tokens that a quantization is calibrated with, or what its quality is judged by."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from data.sampling import choose, from_hub, rows, turns
from pipeline import stage
from pipeline.failure import Failure
from pipeline.spec import Calibration, Prompts, from_json


def blocks(
    texts: list[str], tokenizer: Tokenizer, samples: int, length: int, seed: int
) -> list[list[int]]:
    """`samples` blocks of `length` token ids: the texts in a drawn order, an empty line between, cut without remainder.

    Failure `no_prompts` if they do not yield so many.
    """
    drawn = random.Random(seed).sample(texts, len(texts))
    ids = tokenizer.encode("\n\n".join(drawn), add_special_tokens=False).ids
    whole = len(ids) // length
    if whole < samples:
        raise Failure(
            "no_prompts",
            f"The calibration set yields {whole} blocks of {length} tokens ({len(ids)} tokens in {len(texts)} texts); {samples} are asked for.",
            "Name a larger set in calibration.prompts, or lower calibration.samples or calibration.sequence_length.",
        )
    return [ids[number * length : (number + 1) * length] for number in range(samples)]


def passages(texts: list[str], tokenizer: Tokenizer) -> list[list[int]]:
    """Token ids of each text, with what the tokenizer itself puts before them; those of one token have nothing to predict."""
    return [ids for ids in (tokenizer.encode(text).ids for text in texts) if len(ids) > 1]


def main() -> None:
    job = stage.task(__doc__)
    model, spec = job.manifest("model"), job.spec

    def offered(entry: dict[str, Any], file: Path | None) -> tuple[list[dict[str, Any]], Prompts]:
        asked: Prompts = from_json(Prompts, entry)
        return rows(file or from_hub(asked), asked), asked

    def write(folder: Path) -> dict[str, Any]:
        tokenizer = Tokenizer.from_file(str(model.file("tokenizer") / "tokenizer.json"))

        def count(text: str) -> int:
            return len(tokenizer.encode(text, add_special_tokens=False).ids)

        if "calibration" in spec:
            calibration: Calibration = from_json(Calibration, spec["calibration"])
            said, asked = offered(spec["calibration"]["prompts"], job.file("text"))
            made = blocks(
                ["\n\n".join(turns(row, asked)) for row in said],
                tokenizer,
                calibration.samples,
                calibration.sequence_length,
                spec["seed"],
            )
            (folder / "samples.json").write_text(json.dumps(made))
            return {
                "samples": "samples.json",
                "count": len(made),
                "length": calibration.sequence_length,
                "seed": spec["seed"],
            }
        facts: dict[str, Any] = {}
        if "text" in spec:
            said, asked = offered(spec["text"], job.file("text"))
            held = passages(
                ["\n\n".join(row["turns"]) for row in choose(said, asked, spec["seed"], count)],
                tokenizer,
            )
            (folder / "passages.json").write_text(json.dumps(held))
            facts |= {"passages": "passages.json", "passage_tokens": sum(map(len, held))}
        if "prompts" in spec:
            said, asked = offered(spec["prompts"], job.file("prompts"))
            chosen = [row["turns"][0] for row in choose(said, asked, spec["seed"], count)]
            (folder / "prompts.json").write_text(json.dumps(chosen))
            facts |= {"prompts": "prompts.json", "prompt_count": len(chosen)}
        return facts

    stage.prepare(job, "texts", write, [model])


if __name__ == "__main__":
    main()
