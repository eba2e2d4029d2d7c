"""AWQ by AutoAWQ 0.2.9, its last release: 4 bits with zero points alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from foreign import PROGRAMS
from quantizers import Method

METHOD = Method(
    "AWQ by AutoAWQ",
    ("awq",),
    "hf",
    "autoawq",
    "quantize_autoawq.py",
    bits=(4,),
    symmetric=(False,),
    calibrated=True,
    reproducible=False,
)


def command(
    python: str, source: Path, folder: Path, samples: Path | None, asked: dict[str, Any]
) -> list[str]:
    return [
        python,
        str(PROGRAMS / "quantize_autoawq.py"),
        str(source),
        str(folder),
        str(samples),
        json.dumps(asked),
    ]
