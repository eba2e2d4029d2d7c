"""Build what a backend serves from a model's weights: an engine, a compiled library, or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import backends
import job
from failure import Failure
from manifest import Manifest
from spec import Backend, from_json


def main() -> None:
    args = job.arguments(__doc__, "weights", "environment")
    weights, environment = Manifest.load(args.weights), Manifest.load(args.environment)
    backend: Backend = from_json(Backend, args.spec["backend"])
    adapter = backends.load(backend.adapter)

    def build(folder: Path) -> dict[str, Any]:
        if adapter.WEIGHTS not in weights.facts:
            have = ", ".join(sorted({"hf", "gguf"} & set(weights.facts)))
            raise Failure("bad_model", f"{backend.adapter} loads {adapter.WEIGHTS} weights; {weights.facts['origin']} has {have}.", "Use another model or backend.")
        return adapter.build(weights, folder)

    job.prepare(args, "build", build, [weights, environment])


if __name__ == "__main__":
    main()
