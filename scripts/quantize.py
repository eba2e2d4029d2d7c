"""Make the weights that a quantization asks for: none (as they come) or a GGUF with one type for its matrices."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import gguf
import numpy as np

import job
from failure import Failure
from manifest import Manifest
from spec import Quantization, from_json

log = logging.getLogger(__name__)


def quantize(quantization: Quantization, model: Manifest, folder: Path) -> dict[str, Any]:
    if quantization.method == "none":
        return {"path": model.path, "files": model.files, **model.facts}
    if "gguf" not in model.facts:
        raise Failure("quantize_failed", f"{model.facts['origin']} has no GGUF form to be made {quantization.type}.", "Use a model with one, or another quantization.")
    assert quantization.type
    target = folder / f"{quantization.name}.gguf"
    requantize(model.file("gguf"), target, gguf.GGMLQuantizationType[quantization.type])
    return {"gguf": target.name, "gguf_form": f"GGUF {quantization.type}, from {model.facts['gguf_form']}", "origin": model.facts["origin"]}


def requantize(source: Path, target: Path, kind: gguf.GGMLQuantizationType) -> None:
    """Dequantize every matrix and quantize it to `kind` with gguf's own reference code; vectors stay as they are.

    What the source's type has lost is not found again.
    """
    reader = gguf.GGUFReader(source)
    architecture = reader.fields[gguf.Keys.General.ARCHITECTURE].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for field in reader.fields.values():
        if field.name == gguf.Keys.General.ARCHITECTURE or field.name.startswith("GGUF."):
            continue
        value_type = field.types[0]
        writer.add_key_value(field.name, field.contents(), value_type, field.types[-1] if value_type == gguf.GGUFValueType.ARRAY else None)
    for number, tensor in enumerate(reader.tensors, 1):
        if len(tensor.shape) > 1:
            matrix = gguf.dequantize(tensor.data, tensor.tensor_type)
            if not np.isfinite(matrix).all():
                raise Failure("quantize_failed", f"{source.name}: {tensor.name} holds values that are not finite.", "Use undamaged weights.")
            writer.add_tensor(tensor.name, gguf.quantize(matrix, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        if number % 50 == 0 or number == len(reader.tensors):
            log.info("quantized %d of %d tensors", number, len(reader.tensors))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    args = job.arguments(__doc__, "model")
    model = Manifest.load(args.model)
    quantization: Quantization = from_json(Quantization, args.spec["quantization"])
    job.prepare(args, "quantize", lambda folder: quantize(quantization, model, folder), [model])


if __name__ == "__main__":
    main()
