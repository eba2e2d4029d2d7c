"""Run a server as a process of this machine, and leave none behind.

Three nets, for three ways to end: `serve` stops the server when its block is left, by whatever exception; the supervisor
(runtime/supervise.py) stops it when the job that started it is gone, even by SIGKILL; a sweep before each start kills
what a killed supervisor left.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from failure import Failure

log = logging.getLogger(__name__)
SUPERVISOR = Path(__file__).with_name("supervise.py")
# In the environment of every server process: process id and start time of the job that owns it.
OWNER = "SHOWDOWN_OWNER"
GRACE_S = 15
# Not for a server: a token it has no use for, and this interpreter's own settings.
WITHHELD = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
OUT_OF_MEMORY = ("out of memory", "OutOfMemoryError", "std::bad_alloc", "MemoryError", "Cannot allocate memory")


@dataclass
class Process:
    """A running server: its supervisor, the log it writes, and when it was started (monotonic ns)."""

    supervisor: subprocess.Popen[bytes]
    log_file: Path
    started_ns: int

    def tree(self) -> list[psutil.Process]:
        """The server's processes, without the supervisor."""
        try:
            return psutil.Process(self.supervisor.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def check(self, doing: str) -> None:
        """Failure `server_died` or `out_of_memory` if the server has ended."""
        code = self.supervisor.poll()
        if code is None:
            return
        tail = self.tail()
        how = f"was ended by signal {code - 128}" if code > 128 else f"ended with exit code {code}"
        if code == 128 + signal.SIGKILL or any(sign in tail for sign in OUT_OF_MEMORY):
            raise Failure(
                "out_of_memory",
                f"The server {how} {doing}; its log or the kernel's signal says that memory ran out.",
                "Give it less to hold: fewer sequences, a shorter context, a smaller model.",
                tail,
            )
        raise Failure("server_died", f"The server {how} {doing}.", "Its last words stand in the log.", tail)

    def tail(self, lines: int = 25) -> str:
        """The last lines of the server's log."""
        with self.log_file.open("rb") as stream:
            stream.seek(max(0, self.log_file.stat().st_size - 16384))
            return "\n".join(stream.read().decode(errors="replace").splitlines()[-lines:])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def claim_port(port: int) -> int:
    """The port, if nobody listens on it; Failure `port_taken` with the name of who does."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            holders = {c.pid for c in psutil.net_connections("tcp") if c.laddr and c.laddr.port == port and c.status == psutil.CONN_LISTEN and c.pid}
            who = ", ".join(f"{psutil.Process(pid).name()} (process {pid})" for pid in sorted(holders)) or "another program"
            raise Failure("port_taken", f"Port {port} of 127.0.0.1 is taken by {who}.", "Stop that program, or set server.port to another port or to null.") from error
    return port


@contextmanager
def serve(argv: list[str], env: dict[str, str], log_file: Path, workdir: Path) -> Iterator[Process]:
    """Start the server and stop it when the block is left. `log_file` gets its standard output and error."""
    sweep()
    owner = psutil.Process()
    environment = {name: value for name, value in os.environ.items() if name not in WITHHELD} | env | {OWNER: f"{owner.pid} {owner.create_time()}"}
    with log_file.open("wb") as sink:
        # Standard input is the lifeline: it closes when this process ends, however it ends.
        supervisor = subprocess.Popen(
            [sys.executable, str(SUPERVISOR), str(GRACE_S), *argv],
            stdin=subprocess.PIPE,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=workdir,
            start_new_session=True,
        )
    server = Process(supervisor, log_file, time.perf_counter_ns())
    try:
        yield server
    finally:
        stop(server)


def stop(server: Process) -> None:
    """Close the lifeline and wait until all processes of the server are gone."""
    assert server.supervisor.stdin
    tree = server.tree()
    server.supervisor.stdin.close()
    try:
        server.supervisor.wait(GRACE_S + 10)
    except subprocess.TimeoutExpired:
        server.supervisor.kill()
        server.supervisor.wait()
    for process in psutil.wait_procs(tree, timeout=1)[1]:
        log.warning("server process %d outlived its supervisor; killed", process.pid)
        process.kill()


def sweep() -> None:
    """Kill server processes whose job is gone; touches nothing that does not carry the mark of a dead job."""
    for process in psutil.process_iter():
        try:
            mark = process.environ().get(OWNER)
            if mark and not alive(*mark.split()):
                log.warning("killing process %d, left by a job that is gone", process.pid)
                process.kill()
        except (psutil.Error, OSError):
            continue


def alive(pid: str, created: str) -> bool:
    try:
        return psutil.Process(int(pid)).create_time() == float(created)
    except psutil.NoSuchProcess:
        return False
