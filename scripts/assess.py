"""What is left of a model: a server's raw answers against those of the unquantized model, as figures with their intervals."""

from __future__ import annotations

import math
from typing import Any

from tokenizers import Tokenizer

from metrics import quality
from pipeline import results, stage
from pipeline.artifact import read_json, sha256
from pipeline.failure import RETRIED

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


def unsound(log_probs: list[list[float]] | None) -> int:
    """How many tokens have no probability that a model can give."""
    every = [value for passage in log_probs or [] for value in passage]
    return sum(not (math.isfinite(value) and value > LEAST) for value in every)


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
        found["damaged"] = damaged = unsound(told)
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
    [session], reference, model = (
        job.inputs["session"],
        job.manifest("reference"),
        job.manifest("model"),
    )
    answered = session.with_name("quality.json")
    asked = read_json(answered)
    said = read_json(session)["parts"]["quality.json"]["sha256"]
    if asked["key"] != job.spec["questions"] or sha256(answered) != said:
        raise SystemExit(
            f"{answered} is not what the session wrote: it has been changed. Remove it to ask again."
        )
    why = reference.failure["reason"] if reference.failure else None
    true = None if why else read_json(reference.file("reference"))
    if true and unsound(true["log_probs"]):
        why, true = "its own probabilities are not all finite numbers", None
    again = why if reference.failure and RETRIED[reference.failure["kind"]] else None
    found: dict[str, Any] = dict.fromkeys(FIGURES)
    if not model.failure:
        tokenizer = Tokenizer.from_file(str(model.file("tokenizer") / "tokenizer.json"))
        found = assess(asked, true, tokenizer)
    head = {"key": job.key, "questions": asked["key"], "made_of": {str(answered.parent): said}}
    told = {name: asked.get(name) for name in ("failure", "form", "seconds")}
    results.write(job.output, head | told | found | {"no_reference": why, "retry": again})


if __name__ == "__main__":
    main()
