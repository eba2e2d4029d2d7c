"""Who quantizes: what each method can be asked for and what it writes. One place for these facts.

Sources: AutoAWQ 0.2.9 and LMDeploy 0.18 write 4 bits with zero points alone; llm-compressor 0.14 writes compressed-tensors;
optimum-intel's export has no calibration unless asked for (`optimum-cli export openvino --help`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """`layouts` it writes, the default first; `weights` it reads: 'hf' or 'gguf'; `environment`: its lock in envs/, None for the
    pipeline's own; `calibrated`: whether it watches the model at work. `reproducible`: whether the same machine, inputs and
    seed gave the same bytes twice (tests/test_methods.py)."""

    layouts: tuple[str, ...]
    weights: str
    environment: str | None = None
    bits: tuple[int, ...] = ()
    symmetric: tuple[bool, ...] = ()
    calibrated: bool = False
    reproducible: bool = True


METHODS = {
    "gguf": Method(("gguf",), "gguf"),
    "llmcompressor": Method(("compressed-tensors",), "hf", "llmcompressor", bits=(4,), symmetric=(False, True), calibrated=True),
    "autoawq": Method(("awq",), "hf", "autoawq", bits=(4,), symmetric=(False,), calibrated=True, reproducible=False),
    "lmdeploy": Method(("awq",), "hf", "lmdeploy_lite", bits=(4,), symmetric=(False,)),
    "openvino": Method(("openvino",), "hf", "openvino_export", bits=(4, 8, 16), symmetric=(False, True)),
}
