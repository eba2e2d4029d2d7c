"""AWQ's form by LMDeploy 0.18's `lite auto_awq`: 4 bits with zero points, without data, since its calibration knows only data sets of the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from host.gpus import gpu_kind
from quantizers import Method

METHOD = Method(
    "AWQ by LMDeploy, without data", ("awq",), "hf", "lmdeploy_lite", bits=(4,), symmetric=(False,)
)


def command(
    python: str, source: Path, folder: Path, _samples: Path | None, asked: dict[str, Any]
) -> list[str]:
    argv = [
        python,
        "-m",
        "lmdeploy",
        "lite",
        "auto_awq",
        str(source),
        "--work-dir",
        str(folder),
        "--calib-samples",
        "0",
        "--dtype",
        "float16",
    ]
    argv += ["--w-bits", str(asked["bits"]), "--w-group-size", str(asked["group_size"])]
    return argv + (["--device", "cpu"] if gpu_kind() is None else [])
