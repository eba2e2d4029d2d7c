"""What a reader must know of this machine to judge its numbers."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import psutil
import pynvml

from host.gpus import gpu_handles


def describe_host() -> dict[str, Any]:
    """{cpu, cores, memory_bytes, system, python, gpus}."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "cpu": model,
        "cores": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "python": platform.python_version(),
        "gpus": [str(pynvml.nvmlDeviceGetName(handle)) for handle in gpu_handles()],
    }
