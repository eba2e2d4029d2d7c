"""Make the weights that a quantization asks for: none (as they come), a GGUF of one type, or AWQ or NNCF by the tool of that name."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

import quantizers
from host.gpus import gpu_kind
from models import safetensors
from models.checkpoint import gguf_type
from pipeline import stage
from pipeline.artifact import Manifest
from pipeline.failure import Failure
from pipeline.spec import Quantization, from_json
from runtime import Launch, command

log = logging.getLogger(__name__)
# Unset, glibc gives memory back and takes it again for every temporary of a search over weights: half the time on a CPU.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
# What of a checkpoint's configuration a method has to say; all else, and the tokenizer, is the model's own.
OWN = ("quantization_config", "torch_dtype", "dtype")


def quantize(
    quantization: Quantization,
    model: Manifest,
    folder: Path,
    samples: Manifest | None,
    environment: Manifest | None,
    log_file: Path,
) -> dict[str, Any]:
    """Facts of the quantized weights, made in `folder`; with a method of no layout those of the model itself."""
    if quantization.layout is None:
        return {"path": model.path, "files": model.files, **model.facts}
    form = quantizers.load(quantization.method).weights
    if form not in model.facts:
        raise refused(
            f"{model.facts['origin']} has no {form.upper()} form to be made {quantization.name}.",
            "Use a model with one, or another quantization.",
        )
    if form == "gguf":
        return of_gguf(quantization, model, folder)
    return by_program(quantization, model, folder, samples, environment, log_file)


def refused(reason: str, remedy: str) -> Failure:
    return Failure("quantize_failed", reason, remedy)


def of_gguf(quantization: Quantization, model: Manifest, folder: Path) -> dict[str, Any]:
    assert quantization.type
    target = folder / f"{quantization.name}.gguf"
    try:
        quantizers.module("gguf").requantize(model.file("gguf"), target, quantization.type)
    except ValueError as error:
        raise refused(f"{error}.", "Use undamaged weights.") from error
    told = {
        "gguf_type": gguf_type(target),
        "gguf_form": f"GGUF {quantization.type}, from {model.facts['gguf_form']}",
    }
    return {"gguf": target.name, **told, "origin": model.facts["origin"], "reproducible": True}


def by_program(
    quantization: Quantization,
    model: Manifest,
    folder: Path,
    samples: Manifest | None,
    environment: Manifest | None,
    log_file: Path,
) -> dict[str, Any]:
    """Let the method's own program make the checkpoint, in its own environment."""
    assert environment
    source = model.file("hf")
    see_fit(quantization, model, source)
    python = environment.facts["python"]
    asked: dict[str, Any] = {
        "bits": quantization.bits,
        "group_size": quantization.group_size,
        "symmetric": quantization.symmetric,
        "grid": quantization.grid,
    }
    asked |= {
        "clip": quantization.clip,
        "seed": quantization.seed,
        "trust_remote_code": bool(model.spec["weights"].get("trust_remote_code")),
        "dtype": safetensors.dtype(source),
    }
    argv = quantizers.command(quantization.method)(
        python, source, folder, samples.file("samples") if samples else None, asked
    )
    log.info("%s: %s", quantization.name, " ".join(argv[:6]))
    with tempfile.TemporaryDirectory() as scratch:
        env = KEEP_MEMORY | OFFLINE | {"HF_HOME": scratch} | quantization.env
        peak = command.run(Launch(argv, env, log_file, Path(scratch)), "process", "quantize_failed")
    method = quantizers.load(quantization.method)
    form = "openvino" if quantization.layout == "openvino" else "hf"
    if form == "hf":
        complete(source, folder)
    calibration = (
        {name: samples.facts[name] for name in ("count", "length", "seed")} if samples else None
    )
    return {
        form: ".",
        f"{form}_form": f"{described(quantization)}, from {model.facts['hf_form']}",
        "layout": quantization.layout,
        "origin": model.facts["origin"],
        "calibration": calibration,
        "reproducible": method.reproducible and gpu_kind() is None,
        "versions": environment.facts["versions"],
        "peak_memory_bytes": peak,
    }


def described(quantization: Quantization) -> str:
    """'4-bit AWQ by AutoAWQ (groups of 64, asymmetric)'."""
    if quantization.bits == 16:
        return "16-bit OpenVINO"
    groups = f"groups of {quantization.group_size}" if quantization.bits == 4 else "by channel"
    return f"{quantization.bits}-bit {quantizers.load(quantization.method).words} ({groups}, {'symmetric' if quantization.symmetric else 'asymmetric'})"


def see_fit(quantization: Quantization, model: Manifest, source: Path) -> None:
    """Failure before any work where the weights are quantized already, too large for the memory, damaged, or of a width that groups do not divide."""
    if "layout" in model.facts:
        remedy = "Serve it as it comes with `method: none`, or name the unquantized model."
        raise refused(
            f"{model.facts['origin']} is quantized already (layout {model.facts['layout']}): to quantize it again would lose more.",
            remedy,
        )
    tensors = safetensors.tensors(source)
    short = safetensors.too_large(source, 16 if gpu_kind() else 32)
    if short:
        raise refused(
            short, "Quantize on a larger machine, or name a checkpoint that is quantized already."
        )
    if quantization.bits == 4:
        assert quantization.group_size
        widths = {
            name: int(entry["shape"][1])
            for _, name, entry in tensors
            if is_matrix_of_a_layer(name, entry)
        }
        for name, width in widths.items():
            if width % quantization.group_size:
                able = [
                    size
                    for size in (32, 64, 128, 256)
                    if all(other % size == 0 for other in widths.values())
                ]
                remedy = (
                    f"Set group_size to {' or '.join(map(str, able))}."
                    if able
                    else "No usual group size divides them all; use another method."
                )
                raise refused(
                    f"Groups of {quantization.group_size} do not divide the {width} inputs of {name}.",
                    remedy,
                )
    for path, name, entry in tensors:
        if not safetensors.finite(path, entry):
            raise refused(
                f"{path.name}: {name} holds values that are not finite.", "Use undamaged weights."
            )


def is_matrix_of_a_layer(name: str, entry: dict[str, Any]) -> bool:
    return len(entry["shape"]) == 2 and (".layers." in name or ".h." in name)


def complete(source: Path, folder: Path) -> None:
    """Make a checkpoint whole: the tokenizer is the model's own, and so is its configuration but for what quantization changed."""
    if not list(folder.glob("*.safetensors")):
        raise refused(
            "The method's program ended well and left no safetensors file.",
            "See the log of this stage.",
        )
    written = json.loads((folder / "config.json").read_text())
    kept = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(kept | {name: written[name] for name in OWN if name in written}, indent=2)
    )
    for path in source.iterdir():
        if (
            path.is_file()
            and path.suffix not in (".safetensors", ".gguf")
            and path.name not in ("config.json", "model.safetensors.index.json")
        ):
            shutil.copy(path, folder / path.name)
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)


def main() -> None:
    job = stage.task(__doc__)
    model, samples, environment = (
        job.manifest("model"),
        job.optional("samples"),
        job.optional("environment"),
    )
    quantization: Quantization = from_json(Quantization, job.spec["quantization"])
    log_file = job.log.with_suffix(".program.log")

    def make(folder: Path) -> dict[str, Any]:
        return quantize(quantization, model, folder, samples, environment, log_file)

    stage.prepare(
        job, "quantize", make, [artefact for artefact in (model, samples, environment) if artefact]
    )


if __name__ == "__main__":
    main()
