"""Memory of this host: what is free, what processes take."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil


def free_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of memory that a new process may take: what the host has to spare, or this control group, if that is less."""
    spare = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError):
        spare = min(
            spare,
            int((cgroup / "memory.max").read_text()) - int((cgroup / "memory.current").read_text()),
        )
    return spare


def resident(processes: list[psutil.Process]) -> int:
    """Memory of processes together, bytes; those that have ended meanwhile count for nothing."""
    total = 0
    for process in processes:
        with suppress(psutil.Error):
            total += process.memory_info().rss
    return total
