"""Classified failures: a cell or a preparation that failed is a result, with a kind, a reason and a remedy."""

from __future__ import annotations

import errno
import os
from pathlib import Path

# Kinds, and whether the next run tries again: yes where the machine or its surroundings failed, no where the server did.
RETRIED = {
    "disk_full": True,
    "port_taken": True,
    "download_failed": True,
    "install_failed": True,
    "bad_model": True,
    "no_prompts": True,
    "not_prepared": True,
    "quantize_failed": True,
    "image_missing": True,
    "no_engine": True,
    "no_gpu": True,
    "driver_too_old": True,
    "start_failed": True,
    "build_failed": True,
    "unsupported": False,
    "gpu_too_small": False,
    "start_timeout": False,
    "out_of_memory": False,
    "server_died": False,
    "no_answer": False,
    "no_reference": False,
    "reference_failed": True,
    "not_tried": True,
    "no_task": True,
    "bad_lock": True,
}


class Failure(Exception):
    """A failure that the report can explain; anything else is a defect and ends the job loudly."""

    def __init__(self, kind: str, reason: str, remedy: str, log_tail: str = ""):
        if kind not in RETRIED:
            raise ValueError(f"unknown kind of failure: {kind}")
        super().__init__(f"{reason} {remedy}".strip())
        self.kind, self.reason, self.remedy, self.log_tail = kind, reason, remedy, log_tail

    def to_json(self) -> dict[str, str]:
        return {
            "kind": self.kind,
            "reason": self.reason,
            "remedy": self.remedy,
            "log_tail": self.log_tail,
        }


def of_os_error(error: OSError, where: Path) -> Failure | None:
    """A full disk as a Failure; None for any other error of the operating system."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    place = Path(error.filename) if isinstance(error.filename, str) else where
    while not place.exists():
        place = place.parent
    usage = os.statvfs(place)
    free = usage.f_bavail * usage.f_frsize
    return Failure(
        "disk_full",
        f"No space left at {place}: {free / 2**20:.0f} MiB free.",
        "Free space there, or move `results` or `store` in the configuration.",
    )
