"""One type for the matrices of a GGUF, by gguf's own reference code."""

from __future__ import annotations

from pathlib import Path

from gguf import GGMLQuantizationType

from foreign import requantize as program
from quantizers import Method

METHOD = Method("GGUF", ("gguf",), "gguf", program="requantize.py")


def requantize(source: Path, target: Path, kind: str) -> None:
    """ValueError if a value is not finite."""
    program.requantize(source, target, GGMLQuantizationType[kind])
