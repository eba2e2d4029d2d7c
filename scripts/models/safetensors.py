"""A checkpoint's weights as they lie in its safetensors files, read without a framework."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from host.memory import free_memory

# Bits of the patterns that are infinite or no number: the whole exponent.
EXPONENT: dict[str, tuple[type[np.unsignedinteger[Any]], int]] = {
    "BF16": (np.uint16, 0x7F80),
    "F16": (np.uint16, 0x7C00),
    "F32": (np.uint32, 0x7F800000),
}
CHUNK = 1 << 24


def tensors(folder: Path) -> list[tuple[Path, str, dict[str, Any]]]:
    """Every tensor of a checkpoint: its file, its name, its entry in the header."""
    return [
        (path, name, entry)
        for path in sorted(folder.glob("*.safetensors"))
        for name, entry in header(path).items()
    ]


def too_large(folder: Path, bits: int) -> str | None:
    """Why a checkpoint cannot be held in memory with so many bits a weight, with the numbers; None if it can."""
    parameters, free = sum(prod(entry["shape"]) for _, _, entry in tensors(folder)), free_memory()
    if parameters * bits / 8 <= free:
        return None
    return f"The weights alone take {parameters * bits / 8e9:.1f} GB in {bits} bits ({parameters / 1e9:.2f} billion); {free / 1e9:.1f} GB of memory are free."


def header(path: Path) -> dict[str, dict[str, Any]]:
    """The tensors of a safetensors file: name -> {dtype, shape, data_offsets}, offsets from the start of the file."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        entries = json.loads(stream.read(length))
    return {
        name: entry | {"data_offsets": [offset + 8 + length for offset in entry["data_offsets"]]}
        for name, entry in entries.items()
        if name != "__metadata__"
    }


def finite(path: Path, entry: dict[str, Any]) -> bool:
    """Whether no value is infinite or no number, by the bits of its exponent; types without such values are finite."""
    if entry["dtype"] not in EXPONENT:
        return True
    kind, exponent = EXPONENT[entry["dtype"]]
    start, end = entry["data_offsets"]
    if start == end:
        return True
    values = np.memmap(path, kind, "r", start, ((end - start) // np.dtype(kind).itemsize,))
    return all(
        not ((values[at : at + CHUNK] & kind(exponent)) == exponent).any()
        for at in range(0, len(values), CHUNK)
    )


def dtype(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    return str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
