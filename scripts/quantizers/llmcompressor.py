"""AWQ by llm-compressor 0.14, which writes compressed-tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from foreign import PROGRAMS
from quantizers import Method

METHOD = Method(
    "AWQ by llm-compressor",
    ("compressed-tensors",),
    "hf",
    "llmcompressor",
    "quantize_llmcompressor.py",
    bits=(4,),
    symmetric=(False, True),
    calibrated=True,
)


def command(
    python: str, source: Path, folder: Path, samples: Path | None, asked: dict[str, Any]
) -> list[str]:
    return [
        python,
        str(PROGRAMS / "quantize_llmcompressor.py"),
        str(source),
        str(folder),
        str(samples),
        json.dumps(asked),
    ]
