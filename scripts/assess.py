"""What is left of a model: a server's raw answers against those of the unquantized model, as figures with their intervals."""

from __future__ import annotations

import math
from typing import Any

from tokenizers import Tokenizer

from metrics import quality
from pipeline import results, stage
from pipeline.artifact import read_json

# A logarithm below this is no probability of a token that a model can give.
LEAST = -1e9
FIGURES = (
    "perplexity",
    "perplexity_change",
    "reference_perplexity",
    "agreement",
    "example",
    "tasks",
    "damaged",
)


def assess(
    asked: dict[str, Any], reference: dict[str, Any] | None, tokenizer: Tokenizer
) -> dict[str, Any]:
    """{perplexity, perplexity_change, reference_perplexity, agreement, example, tasks, damaged}; None for what the answers and the reference
    do not carry. `damaged` counts tokens to which the server gave no finite probability, `example` is the answer that parts first."""
    found: dict[str, Any] = dict.fromkeys(FIGURES)
    if reference and reference["log_probs"]:
        found["reference_perplexity"] = quality.perplexity(reference["log_probs"])
    told = asked.get("log_probs")
    if told:
        damaged = sum(
            not (math.isfinite(value) and value > LEAST) for passage in told for value in passage
        )
        found["damaged"] = damaged
        if not damaged:
            found["perplexity"] = quality.perplexity(told)
            if reference:
                found["perplexity_change"] = quality.perplexity_change(told, reference["log_probs"])
    if reference and asked.get("answers"):
        tokens = [
            [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
            for texts in (asked["answers"], reference["answers"])
        ]
        found["agreement"] = quality.agreement(*tokens)
        parts = found["agreement"]["parts_at"]
        first = min(
            (number for number, part in enumerate(parts) if part is not None),
            key=lambda number: parts[number],
            default=None,
        )
        found["example"] = (
            None
            if first is None
            else {
                "reference": reference["answers"][first],
                "served": asked["answers"][first],
                "parts_at": parts[first],
            }
        )
    found["tasks"] = asked.get("tasks")
    return found


def main() -> None:
    job = stage.task(__doc__)
    [session] = job.inputs["session"]
    answered = session.with_name("quality.json")
    asked, reference = read_json(answered), job.manifest("reference")
    told = {name: asked.get(name) for name in ("failure", "form", "seconds")}
    why = reference.failure["reason"] if reference.failure else None
    model = job.manifest("model")
    found: dict[str, Any] = dict.fromkeys(FIGURES)
    if not model.failure:
        tokenizer = Tokenizer.from_file(str(model.file("tokenizer") / "tokenizer.json"))
        found = assess(asked, None if why else read_json(reference.file("reference")), tokenizer)
    head = {
        "key": job.key,
        "questions": asked["key"],
        "made_of": results.made_of(answered),
        "no_reference": why,
    }
    results.write(job.output, head | told | found)


if __name__ == "__main__":
    main()
