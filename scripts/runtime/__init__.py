"""How a server is run: started, waited for, watched, stopped. A runtime knows no backend; a backend knows no runtime.

A runtime is a file of this folder, found by its name, that gives

CONTAINED        whether what it starts sees its own files, so that artefacts are mounted and ports published
OWN_NETWORK      whether its ports are its own, and one is published on 127.0.0.1
serve(launch)    a context in which the server runs; gives a Server, stops it at the end, and leaves nothing behind
prepare(environment, folder)  make an image ready; gives its facts (only where CONTAINED)
missing(facts)   why what `prepare` made is no longer there, or None
"""

from __future__ import annotations

import dataclasses
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

import psutil

from pipeline.artifact import Manifest
from pipeline.failure import Failure

# In the environment of every server process, and the label of every container: process id and start time of the job that owns it.
OWNER = "SHOWDOWN_OWNER"
GRACE_S = 15
OUT_OF_MEMORY = (
    "out of memory",
    "OutOfMemoryError",
    "std::bad_alloc",
    "MemoryError",
    "Cannot allocate memory",
)
# Words of the CUDA runtime and of the container toolkit where an image wants a newer driver than the host has.
OLD_DRIVER = (
    "CUDA driver version is insufficient",
    "driver too old",
    "unsatisfied condition: cuda",
    "forward compatibility was attempted on non supported HW",
)


@dataclass(frozen=True)
class Mount:
    host: Path
    inside: str
    writable: bool = False


@dataclass(frozen=True)
class Launch:
    """What to start. The fields below `workdir` concern containers alone; `gpus` are UUIDs, also for a process.

    `port` is published on 127.0.0.1; there is no other network unless `network`. `label` names run and cell.
    """

    argv: list[str]
    env: dict[str, str]
    log_file: Path
    workdir: Path
    gpus: tuple[str, ...] = ()
    image: str = ""
    through_entrypoint: bool = False
    mounts: tuple[Mount, ...] = ()
    port: tuple[int, int] | None = None
    memory_gib: float | None = None
    user: str | None = None
    network: bool = False
    label: str = ""


class Server(Protocol):
    """A running server: when it was started (monotonic ns), its log, its processes; once it has ended, its exit code and whether
    the kernel ended it for want of memory, None where that cannot be told."""

    started_ns: int
    log_file: Path

    def tree(self) -> list[psutil.Process]: ...
    def exit_code(self) -> int | None: ...
    def out_of_memory(self) -> bool | None: ...


class Runtime(Protocol):
    CONTAINED: bool
    OWN_NETWORK: bool

    @staticmethod
    def serve(launch: Launch) -> AbstractContextManager[Server]: ...
    @staticmethod
    def prepare(environment: Any, folder: Path) -> dict[str, Any]: ...
    @staticmethod
    def missing(facts: dict[str, Any]) -> str | None: ...


def file_of(name: str) -> str:
    """The module of a runtime: an engine's file is not called as the library that speaks to it is."""
    return f"{name}_engine" if name in ("docker", "podman") else name


def files_of(name: str) -> tuple[str, ...]:
    """The files of a runtime that are found by name, not imported: its own, and the program that outlives a job of its."""
    helper = "guard.py" if name in ("docker", "podman") else "supervise.py"
    return f"{file_of(name)}.py", helper


def load(name: str) -> Runtime:
    return cast(Runtime, import_module(f"runtime.{file_of(name)}"))


def check(server: Server, doing: str) -> None:
    """Failure `out_of_memory`, `driver_too_old` or `server_died` if the server has ended."""
    code = server.exit_code()
    if code is None:
        return
    last, starved = tail(server.log_file), server.out_of_memory()
    how = f"was ended by signal {code - 128}" if code > 128 else f"ended with exit code {code}"
    if (
        starved
        or (starved is None and code == 128 + 9)
        or any(sign in last for sign in OUT_OF_MEMORY)
    ):
        raise Failure(
            "out_of_memory",
            f"The server {how} {doing}; its log or the kernel's signal says that memory ran out.",
            "Give it less to hold: fewer sequences, a shorter context, a smaller model.",
            last,
        )
    if any(sign in last for sign in OLD_DRIVER):
        raise Failure(
            "driver_too_old",
            f"The server {how} {doing}: its CUDA needs a newer driver.",
            "Update the host's driver, or name an image built for an older CUDA.",
            last,
        )
    raise Failure(
        "server_died", f"The server {how} {doing}.", "Its last words stand in the log.", last
    )


def tail(log_file: Path, lines: int = 25) -> str:
    """The last lines of a log."""
    with log_file.open("rb") as stream:
        stream.seek(max(0, log_file.stat().st_size - 16384))
        return "\n".join(stream.read().decode(errors="replace").splitlines()[-lines:])


def placed(runtime: Runtime, artefact: Manifest, at: str) -> tuple[Manifest, tuple[Mount, ...]]:
    """The artefact as a server sees it, and the mounts that this takes: in a container it lies below `at`.

    The hub's cache links a model's files to where their bytes lie, so what is mounted holds both.
    """
    if not runtime.CONTAINED:
        return artefact, ()
    folder = Path(artefact.path)
    real = [str((folder / entry["path"]).resolve()) for entry in artefact.files]
    root = os.path.commonpath([str(folder), *(str(Path(path).parent) for path in real)])
    return dataclasses.replace(
        artefact,
        path=os.path.join(at, os.path.relpath(folder, root)) if str(folder) != root else at,
    ), (Mount(Path(root), at),)


def mark() -> str:
    """This job, as OWNER names it."""
    owner = psutil.Process()
    return f"{owner.pid} {owner.create_time()}"


def alive(owner: str) -> bool:
    """Whether the job of this mark still runs."""
    try:
        pid, created = owner.split()
        return psutil.Process(int(pid)).create_time() == float(created)
    except (psutil.NoSuchProcess, ValueError):
        return False
