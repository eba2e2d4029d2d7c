"""Run a server as a process of this machine, and leave none behind.

Three nets, for three ways to end: `serve` stops the server when its block is left, by whatever exception; the supervisor
(runtime/supervise.py) stops it when the job that started it is gone, even by SIGKILL; a sweep before each start kills
what a killed supervisor left.
"""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from pipeline.failure import Failure
from pipeline.withheld import environment_of_others
from runtime import GRACE_S, OWNER, Launch, alive, mark

log = logging.getLogger(__name__)
CONTAINED = False
OWN_NETWORK = False
SUPERVISOR = Path(__file__).with_name("supervise.py")


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

    def exit_code(self) -> int | None:
        """None while it runs; 128 + signal where one ended it."""
        return self.supervisor.poll()

    def out_of_memory(self) -> bool | None:
        """A process cannot tell by itself: its signal and its log do."""
        return None


def prepare(_environment: Any, _folder: Path) -> dict[str, Any]:
    raise NotImplementedError("a process needs no image")


def missing(_facts: dict[str, Any]) -> str | None:
    return None


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
            holders = {
                c.pid
                for c in psutil.net_connections("tcp")
                if c.laddr and c.laddr.port == port and c.status == psutil.CONN_LISTEN and c.pid
            }
            who = (
                ", ".join(
                    f"{psutil.Process(pid).name()} (process {pid})" for pid in sorted(holders)
                )
                or "another program"
            )
            raise Failure(
                "port_taken",
                f"Port {port} of 127.0.0.1 is taken by {who}.",
                "Stop that program, or set server.port to another port or to null.",
            ) from error
    return port


@contextmanager
def serve(launch: Launch) -> Iterator[Process]:
    """Start the server and stop it when the block is left. Its log gets its standard output and error."""
    sweep()
    environment = environment_of_others() | launch.env | {OWNER: mark()}
    if launch.gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(launch.gpus)
    with launch.log_file.open("wb") as sink:
        # Standard input is the lifeline: it closes when this process ends, however it ends.
        supervisor = subprocess.Popen(
            [sys.executable, str(SUPERVISOR), str(GRACE_S), *launch.argv],
            stdin=subprocess.PIPE,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=launch.workdir,
            start_new_session=True,
        )
    server = Process(supervisor, launch.log_file, time.perf_counter_ns())
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
            owner = process.environ().get(OWNER)
            if owner and not alive(owner):
                log.warning("killing process %d, left by a job that is gone", process.pid)
                process.kill()
        except (psutil.Error, OSError):
            continue
