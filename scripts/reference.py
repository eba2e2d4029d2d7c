"""What the unquantized model says in Transformers: the reference that every backend and quantization is judged against."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from foreign import PROGRAMS
from host.gpus import gpu_kind
from models import safetensors
from pipeline import stage
from pipeline.artifact import Manifest
from pipeline.failure import Failure
from runtime import Launch, command


def answer(
    model: Manifest,
    texts: Manifest,
    python: str,
    answer_tokens: int,
    trust: bool,
    accelerated: bool,
    folder: Path,
    log_file: Path,
) -> dict[str, Any]:
    """Facts of reference.json: {log_probs of each passage, answers to each prompt, dtype}. Failure `no_reference` where there can be none, `reference_failed`."""
    if "hf" not in model.facts or "layout" in model.facts:
        why = (
            f"its weights are quantized (layout {model.facts['layout']})"
            if "layout" in model.facts
            else "it has no Hugging Face form"
        )
        raise Failure(
            "no_reference",
            f"{model.facts['origin']} cannot be the reference: {why}.",
            "Its quality is given without a difference to the unquantized model.",
        )
    # A locked environment computes on the CPU, in 32 bits; an interpreter of the configuration may have CUDA.
    short = safetensors.too_large(model.file("hf"), 16 if accelerated else 32)
    if short:
        raise Failure(
            "no_reference",
            short,
            "Quality is given without a difference to the unquantized model. Name an interpreter with CUDA in converter_python, or a larger machine.",
        )
    files = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("passages", "prompts"):
            files.append(
                str(texts.file(name)) if name in texts.facts else str(Path(scratch, f"{name}.json"))
            )
            if name not in texts.facts:
                Path(files[-1]).write_text("[]")
        argv = [
            python,
            str(PROGRAMS / "reference_answers.py"),
            str(model.file("hf")),
            *files,
            str(answer_tokens),
            str(folder / "reference.json"),
        ]
        peak = command.run(
            Launch(argv + ["trust"] * trust, {"HF_HUB_OFFLINE": "1"}, log_file, Path(scratch)),
            "process",
            "reference_failed",
        )
    return {
        "reference": "reference.json",
        "dtype": json.loads((folder / "reference.json").read_text())["dtype"],
        "peak_memory_bytes": peak,
    }


def main() -> None:
    job = stage.task(__doc__)
    model, texts, environment = (job.manifest(name) for name in ("model", "texts", "environment"))
    log_file = job.log.with_suffix(".program.log")

    def make(folder: Path) -> dict[str, Any]:
        accelerated = job.spec["environment"]["kind"] == "interpreter" and gpu_kind() is not None
        python, length, trust = (
            environment.facts["python"],
            job.spec["answer_tokens"],
            job.spec["trust_remote_code"],
        )
        return answer(model, texts, python, length, trust, accelerated, folder, log_file)

    stage.prepare(job, "reference", make, [model, texts, environment])


if __name__ == "__main__":
    main()
