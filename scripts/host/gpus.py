"""The GPUs of this host, by NVML: which there are, which are this job's, what they do. None where there is no driver."""

from __future__ import annotations

import os
from typing import Any

import pynvml

from pipeline.failure import Failure

# nvml.h, nvmlClocksEventReason*: what holds a GPU's clocks down, beside being idle.
THROTTLES = {
    "power cap": 0x4,
    "hardware slowdown": 0x8,
    "sync boost": 0x10,
    "thermal (software)": 0x20,
    "thermal (hardware)": 0x40,
    "power brake": 0x80,
}


def gpu_handles() -> list[Any]:
    """NVML handles of the GPUs of this host; none where there is no driver."""
    try:
        pynvml.nvmlInit()
        return [
            pynvml.nvmlDeviceGetHandleByIndex(number)
            for number in range(pynvml.nvmlDeviceGetCount())
        ]
    except pynvml.NVMLError:
        return []


def gpu_sample(handle: Any) -> dict[str, Any]:
    return {
        "uuid": pynvml.nvmlDeviceGetUUID(handle),
        "utilization_percent": pynvml.nvmlDeviceGetUtilizationRates(handle).gpu,
        "memory_bytes": pynvml.nvmlDeviceGetMemoryInfo(handle).used,
        "power_w": pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        "sm_clock_mhz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
        "throttled": [
            name
            for name, bit in THROTTLES.items()
            if pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle) & bit
        ],
    }


def allocated(count: int) -> list[dict[str, Any]]:
    """The first `count` GPUs of this job's allocation (CUDA_VISIBLE_DEVICES: indices or UUIDs), else of the host: {uuid, name,
    memory_bytes, compute_capability}. Failure `no_gpu` where there are fewer."""
    found = []
    for handle in gpu_handles():
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
        told = {
            "uuid": pynvml.nvmlDeviceGetUUID(handle),
            "name": str(pynvml.nvmlDeviceGetName(handle)),
            "compute_capability": f"{major}.{minor}",
        }
        found.append(told | {"memory_bytes": pynvml.nvmlDeviceGetMemoryInfo(handle).total})
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        named = [name.strip() for name in visible.split(",") if name.strip()]
        found = [
            gpu
            for name in named
            for number, gpu in enumerate(found)
            if name == str(number) or gpu["uuid"].startswith(name)
        ]
    if len(found) < count:
        where = "this host has" if visible is None else f"CUDA_VISIBLE_DEVICES={visible} leaves"
        raise Failure(
            "no_gpu",
            f"{count} GPU{'s are' if count > 1 else ' is'} asked for, and {where} {len(found)}.",
            "Run where there are GPUs, lower server.tensor_parallel, or set server.device to cpu.",
        )
    return found[:count]


def gpu_kind() -> dict[str, str] | None:
    """Name and compute capability of this host's first GPU; None where there is none."""
    try:
        [gpu] = allocated(1)
        return {"name": gpu["name"], "compute_capability": gpu["compute_capability"]}
    except Failure:
        return None
