"""Locks that are held while something is measured: on a session's folder, and on the whole machine.

The kernel frees them when their holder ends, however it ends.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger(__name__)
# One for all users of a machine. Not below $TMPDIR, which is each job's own on a cluster.
MACHINE = "/tmp/llm-backend-showdown.lock"  # noqa: S108 -- what it holds is read by people alone
POLL_S = 0.5
REMIND_S = 60.0


@contextmanager
def on_folder(folder: Path) -> Iterator[None]:
    """Alone in this folder: nobody else writes its results."""
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder / ".lock", f"writes {folder}"):
        yield


@contextmanager
def on_machine(what: str) -> Iterator[None]:
    """Alone on this machine, of all runs that measure, whoever started them. $SHOWDOWN_MACHINE_LOCK names another lock."""
    with alone(Path(os.environ.get("SHOWDOWN_MACHINE_LOCK") or MACHINE), what):
        yield


@contextmanager
def alone(path: Path, what: str) -> Iterator[None]:
    """Wait until nobody holds the lock, saying who does; hold it, with `what` in it for those who wait."""
    try:
        handle = opened(path)
    except OSError as error:
        raise SystemExit(
            f"{path} cannot be used as a lock: {error.strerror}. "
            "Remedy: remove it, or name another file in SHOWDOWN_MACHINE_LOCK."
        ) from error
    try:
        wait(handle, path)
        with suppress(OSError):  # opened for reading alone: another user's
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()}: {what}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def opened(path: Path) -> int:
    """A handle on the lock's file, which every user may open: made with the right to write for all."""
    with suppress(FileExistsError):
        made = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        with suppress(OSError):
            os.fchmod(made, 0o666)
        return made
    # Without O_CREAT: in a folder like /tmp the kernel refuses that on files of others.
    with suppress(PermissionError):
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)


def wait(handle: int, path: Path) -> None:
    said = 0.0
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() - said > REMIND_S or not said:
                said = time.monotonic()
                holder = (
                    os.pread(handle, 400, 0).decode(errors="replace").strip() or "another process"
                )
                log.warning("waiting for %s (%s)", holder, path)
            time.sleep(POLL_S)
