"""OpenVINO's weights by NNCF, as optimum-intel exports a model; no calibration unless asked for (`optimum-cli export openvino --help`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quantizers import Method

METHOD = Method(
    "OpenVINO by NNCF",
    ("openvino",),
    "hf",
    "openvino_export",
    bits=(4, 8, 16),
    symmetric=(False, True),
)


def command(
    python: str, source: Path, folder: Path, _samples: Path | None, asked: dict[str, Any]
) -> list[str]:
    """Weights of 16 bits as they are, of 8 by channel, of 4 in groups, all matrices of the layers alike."""
    argv = [
        python,
        "-m",
        "optimum.commands.optimum_cli",
        "export",
        "openvino",
        "--model",
        str(source),
        "--task",
        "text-generation-with-past",
    ]
    argv += ["--weight-format", {16: "fp16", 8: "int8", 4: "int4"}[asked["bits"]]]
    argv += (
        ["--group-size", str(asked["group_size"]), "--ratio", "1.0"] if asked["bits"] == 4 else []
    )
    argv += ["--sym"] if asked["symmetric"] and asked["bits"] < 16 else []
    return [*argv, *(["--trust-remote-code"] if asked["trust_remote_code"] else []), str(folder)]
