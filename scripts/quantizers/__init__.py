"""Quantization methods: one file each, found by its name. Each reruns its own quantizations.

A file gives METHOD, and `command`, which makes the checkpoint in the method's own environment (gguf: `requantize`, in the
pipeline's own).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

# Interpreter, source folder, target folder, file of the calibration's blocks, what is asked -> the command.
Command = Callable[[str, Path, Path, Path | None, dict[str, Any]], list[str]]


@dataclass(frozen=True)
class Method:
    """`words`: what it makes, for people. `layouts` it writes, the default first; `weights` it reads: 'hf' or 'gguf';
    `environment`: its lock in envs/, None for the pipeline's own; `program`: its file in scripts/foreign, None where it is
    somebody else's; `calibrated`: whether it watches the model at work; `reproducible`: whether the same machine, inputs
    and seed gave the same bytes twice (tests/test_methods.py)."""

    words: str
    layouts: tuple[str, ...]
    weights: str
    environment: str | None = None
    program: str | None = None
    bits: tuple[int, ...] = ()
    symmetric: tuple[bool, ...] = ()
    calibrated: bool = False
    reproducible: bool = True


def module(name: str) -> Any:
    return import_module(f"quantizers.{name}")


def load(name: str) -> Method:
    method: Method = module(name).METHOD
    return method


def command(name: str) -> Command:
    made: Command = module(name).command
    return made


@cache
def names() -> tuple[str, ...]:
    """Every method there is: the files of this folder."""
    return tuple(
        sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")
    )
