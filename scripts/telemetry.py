"""What the machine did beside a cell, once a second: the server's and the client's CPU and memory, the host's, the GPUs'.

Hardware that is not there gives no column; nothing is invented.
"""

from __future__ import annotations

import logging
import os
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import psutil
import pynvml

from failure import Failure

log = logging.getLogger(__name__)
STEP_S = 1.0
# nvml.h, nvmlClocksEventReason*: what holds a GPU's clocks down, beside being idle.
THROTTLES = {"power cap": 0x4, "hardware slowdown": 0x8, "sync boost": 0x10, "thermal (software)": 0x20, "thermal (hardware)": 0x40, "power brake": 0x80}


@contextmanager
def sampling(tree: Callable[[], list[psutil.Process]], uuids: tuple[str, ...] = ()) -> Iterator[list[dict[str, Any]]]:
    """Sample in a thread while the block runs; gives the list that the rows go to.

    A row: time_ns (perf_counter), server_cpu_s and client_cpu_s (CPU seconds so far), server_rss_bytes, host_cpu_percent,
    host_available_bytes, and of the GPUs named by `uuids` a list of {uuid, utilization_percent, memory_bytes, power_w,
    sm_clock_mhz, throttled (reasons by name)}.
    """
    rows: list[dict[str, Any]] = []
    over = threading.Event()
    gpus = [handle for handle in gpu_handles() if pynvml.nvmlDeviceGetUUID(handle) in uuids]

    def work() -> None:
        psutil.cpu_percent()
        while not over.wait(STEP_S):
            try:
                rows.append(sample(tree(), gpus))
            except (psutil.Error, pynvml.NVMLError) as error:
                log.info("telemetry: %s", error)

    thread = threading.Thread(target=work, name="telemetry")
    thread.start()
    try:
        yield rows
    finally:
        over.set()
        thread.join()


def sample(servers: list[psutil.Process], gpus: list[Any]) -> dict[str, Any]:
    cpu_s, rss = 0.0, 0
    for process in servers:
        try:
            times = process.cpu_times()
            cpu_s += times.user + times.system
            rss += process.memory_info().rss
        except psutil.Error:
            continue
    # The load generator's processes are children of this one; the server is a grandchild, or no relation.
    client_s = 0.0
    for process in (psutil.Process(), *psutil.Process().children()):
        with suppress(psutil.Error):
            times = process.cpu_times()
            client_s += times.user + times.system
    row: dict[str, Any] = {
        "time_ns": perf_counter_ns(),
        "server_cpu_s": round(cpu_s, 3),
        "server_rss_bytes": rss,
        "client_cpu_s": round(client_s, 3),
        "host_cpu_percent": psutil.cpu_percent(),
        "host_available_bytes": psutil.virtual_memory().available,
    }
    if gpus:
        row["gpus"] = [gpu_sample(handle) for handle in gpus]
    return row


def resident(processes: list[psutil.Process]) -> int:
    """Memory of processes together, bytes; those that have ended meanwhile count for nothing."""
    total = 0
    for process in processes:
        with suppress(psutil.Error):
            total += process.memory_info().rss
    return total


def gpu_handles() -> list[Any]:
    """NVML handles of the GPUs of this host; none where there is no driver."""
    try:
        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []


def gpu_sample(handle: Any) -> dict[str, Any]:
    return {
        "uuid": pynvml.nvmlDeviceGetUUID(handle),
        "utilization_percent": pynvml.nvmlDeviceGetUtilizationRates(handle).gpu,
        "memory_bytes": pynvml.nvmlDeviceGetMemoryInfo(handle).used,
        "power_w": pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        "sm_clock_mhz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
        "throttled": [name for name, bit in THROTTLES.items() if pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle) & bit],
    }


def allocated(count: int) -> list[dict[str, Any]]:
    """The first `count` GPUs of this job's allocation (CUDA_VISIBLE_DEVICES: indices or UUIDs), else of the host: {uuid, name,
    memory_bytes, compute_capability}. Failure `no_gpu` where there are fewer."""
    found = []
    for handle in gpu_handles():
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
        told = {"uuid": pynvml.nvmlDeviceGetUUID(handle), "name": str(pynvml.nvmlDeviceGetName(handle)), "compute_capability": f"{major}.{minor}"}
        found.append(told | {"memory_bytes": pynvml.nvmlDeviceGetMemoryInfo(handle).total})
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        named = [name.strip() for name in visible.split(",") if name.strip()]
        found = [gpu for name in named for number, gpu in enumerate(found) if name == str(number) or gpu["uuid"].startswith(name)]
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


def free_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of memory that a new process may take: what the host has to spare, or this control group, if that is less."""
    spare = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError):
        spare = min(spare, int((cgroup / "memory.max").read_text()) - int((cgroup / "memory.current").read_text()))
    return spare


def host() -> dict[str, Any]:
    """What a reader must know of this machine to judge its numbers."""
    model = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), platform.processor())
    return {
        "cpu": model,
        "cores": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "python": platform.python_version(),
        "gpus": [str(pynvml.nvmlDeviceGetName(handle)) for handle in gpu_handles()],
    }
