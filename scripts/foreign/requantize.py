"""A GGUF with another type for its matrices. Runs wherever gguf is.

usage: requantize.py SOURCE TARGET TYPE
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import gguf
import numpy as np

log = logging.getLogger(__name__)


def requantize(source: Path, target: Path, kind: gguf.GGMLQuantizationType) -> None:
    """Dequantize every matrix and quantize it to `kind` with gguf's own reference code; vectors stay as they are.

    What the source's type has lost is not found again. ValueError if a value is not finite.
    """
    reader = gguf.GGUFReader(source)
    architecture = reader.fields[gguf.Keys.General.ARCHITECTURE].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for field in reader.fields.values():
        if field.name == gguf.Keys.General.ARCHITECTURE or field.name.startswith("GGUF."):
            continue
        value_type = field.types[0]
        writer.add_key_value(
            field.name,
            field.contents(),
            value_type,
            field.types[-1] if value_type == gguf.GGUFValueType.ARRAY else None,
        )
    for number, tensor in enumerate(reader.tensors, 1):
        if len(tensor.shape) > 1:
            matrix = gguf.dequantize(tensor.data, tensor.tensor_type)
            if not np.isfinite(matrix).all():
                raise ValueError(f"{source.name}: {tensor.name} holds values that are not finite")
            writer.add_tensor(tensor.name, gguf.quantize(matrix, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        if number % 50 == 0 or number == len(reader.tensors):
            log.info("quantized %d of %d tensors", number, len(reader.tensors))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    requantize(Path(sys.argv[1]), Path(sys.argv[2]), gguf.GGMLQuantizationType[sys.argv[3]])
