"""Start a server and end it, with all it started, when standard input closes or the server itself ends.

usage: supervise.py GRACE_SECONDS COMMAND...
Exits with the server's code, or 128 + signal. Uses the standard library and psutil only.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading

import psutil

# linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def supervise(grace_s: float, command: list[str]) -> int:
    """Run the command to its end or to the end of standard input; grandchildren that it leaves are ended as well."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    server = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
    )

    def watch() -> None:
        os.read(0, 1)
        end(server, grace_s)

    threading.Thread(target=watch, daemon=True).start()
    code = server.wait()
    end(None, grace_s)
    return code if code >= 0 else 128 - code


def end(server: subprocess.Popen[bytes] | None, grace_s: float) -> None:
    """SIGTERM to the server, which knows how to stop its own; after the grace, SIGKILL to all that is left below us."""
    if server is not None:
        try:
            server.terminate()
            server.wait(grace_s)
        except subprocess.TimeoutExpired:
            sys.stderr.write(f"supervisor: not ended {grace_s} s after SIGTERM, killed\n")
    left = psutil.Process().children(recursive=True)
    for process in left:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(
        [process for process in left if server is None or process.pid != server.pid], timeout=5
    )


if __name__ == "__main__":
    # A handler that does nothing, not SIG_IGN: the server would inherit that, and then ignore SIGTERM itself.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    sys.exit(supervise(float(sys.argv[1]), sys.argv[2:]))
