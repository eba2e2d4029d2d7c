"""What is left of a model: the probe's raw answers against those of the unquantized model, as figures with their intervals."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer

import job
from manifest import Manifest, write_json
from metrics import quality

FIGURES = ("perplexity", "perplexity_change", "reference_perplexity", "agreement", "example", "tasks", "damaged")


def assess(probe: dict[str, Any], reference: dict[str, Any] | None, tokenizer: Tokenizer) -> dict[str, Any]:
    """{perplexity, perplexity_change, reference_perplexity, agreement, example, tasks, damaged}; None for what the probe and the reference
    do not carry. `damaged` counts tokens to which the server gave no finite probability, `example` is the answer that parts first."""
    found: dict[str, Any] = dict.fromkeys(FIGURES)
    if reference and reference["log_probs"]:
        found["reference_perplexity"] = quality.perplexity(reference["log_probs"])
    told = probe.get("log_probs")
    if told:
        damaged = sum(not value > -1e9 for passage in told for value in passage)
        found["damaged"] = damaged
        if not damaged:
            found["perplexity"] = quality.perplexity(told)
            if reference:
                found["perplexity_change"] = quality.perplexity_change(told, reference["log_probs"])
    if reference and probe.get("answers"):
        tokens = [[encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)] for texts in (probe["answers"], reference["answers"])]
        found["agreement"] = quality.agreement(*tokens)
        parts = found["agreement"]["parts_at"]
        first = min((number for number, part in enumerate(parts) if part is not None), key=lambda number: parts[number], default=None)
        found["example"] = None if first is None else {"reference": reference["answers"][first], "served": probe["answers"][first], "parts_at": parts[first]}
    found["tasks"] = probe.get("tasks")
    return found


def main() -> None:
    args = job.arguments(__doc__, "probe", "reference", "model")
    probe, reference = json.loads(args.probe.read_text()), Manifest.load(args.reference)
    told = {name: probe.get(name) for name in ("failure", "form", "seconds", "ready_s")}
    why = reference.failure["reason"] if reference.failure else None
    tokenizer = Tokenizer.from_file(str(Manifest.load(args.model).file("tokenizer") / "tokenizer.json"))
    found = assess(probe, None if why else json.loads(reference.file("reference").read_text()), tokenizer)
    write_json(args.output, told | found | {"no_reference": why})


if __name__ == "__main__":
    main()
