"""What the machine did beside a cell, once a second: the server's and the client's CPU and memory, the host's, the GPUs'.

Hardware that is not there gives no column; nothing is invented.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import perf_counter_ns
from typing import Any

import psutil
import pynvml

from host.gpus import gpu_handles, gpu_sample

log = logging.getLogger(__name__)
STEP_S = 1.0


@contextmanager
def sampling(
    tree: Callable[[], list[psutil.Process]], uuids: tuple[str, ...] = ()
) -> Iterator[list[dict[str, Any]]]:
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
