"""No server outlives its job, however either ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from pipeline.failure import Failure
from runtime import Launch, check, process

SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
# A server that leaves a grandchild in a session of its own and ignores SIGTERM itself.
STUBBORN = textwrap.dedent(
    """
    import signal, subprocess, sys, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    print("up", flush=True)
    time.sleep(600)
    """
)


def gone(pids: list[int], within_s: float = 10) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not any(
            psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
            for pid in pids
        ):
            return True
        time.sleep(0.05)
    return False


def until_up(log: Path) -> None:
    deadline = time.monotonic() + 10
    while "up" not in (log.read_text() if log.exists() else "") and time.monotonic() < deadline:
        time.sleep(0.05)


def pids(server: process.Process) -> list[int]:
    return [server.supervisor.pid, *(one.pid for one in server.tree())]


def test_leaving_the_block_stops_the_server(tmp_path: Path) -> None:
    with process.serve(Launch(SLEEPER, {}, tmp_path / "log", tmp_path)) as server:
        until_up(tmp_path / "log")
        check(server, "now")
        running = pids(server)
        assert len(running) == 2

    assert gone(running, 0.1)


def test_an_exception_stops_the_server_and_its_grandchildren(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "GRACE_S", 1)
    running: list[int] = []

    def load() -> None:
        with process.serve(
            Launch([sys.executable, "-c", STUBBORN], {}, tmp_path / "log", tmp_path)
        ) as server:
            until_up(tmp_path / "log")
            running.extend(pids(server))
            raise KeyError

    with pytest.raises(KeyError):
        load()

    assert len(running) == 3
    assert gone(running, 1)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_job_takes_its_server_along(tmp_path: Path, number: signal.Signals) -> None:
    job = textwrap.dedent(
        f"""
        import sys, time
        from pathlib import Path
        from pipeline import stage
        from runtime import Launch, check, process
        process.GRACE_S = 1
        stage.listen(Path("job.log"))
        with process.serve(Launch([sys.executable, "-c", {STUBBORN!r}], {{}}, Path("log"), Path("."))) as server:
            while "up" not in Path("log").read_text():
                time.sleep(0.05)
            print(server.supervisor.pid, *(one.pid for one in server.tree()), flush=True)
            time.sleep(600)
        """
    )
    scripts = str(Path(process.__file__).parent.parent)
    with subprocess.Popen(
        [sys.executable, "-c", job],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": scripts},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as running:
        assert running.stdout
        left = [int(pid) for pid in running.stdout.readline().split()]
        assert len(left) == 3
        running.send_signal(number)

    assert gone(left)


def test_what_a_killed_supervisor_leaves_is_swept_before_the_next_start(tmp_path: Path) -> None:
    mark = {
        process.OWNER: f"{os.getpid()} 12.5"
    }  # this process's number, but not its start: its owner is dead
    orphan = subprocess.Popen(SLEEPER, env=os.environ | mark, stdout=subprocess.DEVNULL)
    other = subprocess.Popen(SLEEPER, stdout=subprocess.DEVNULL)
    try:
        process.sweep()

        assert orphan.wait(5) == -signal.SIGKILL
        assert other.poll() is None, "nothing without the mark is touched"
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize(
    ("program", "kind", "word"),
    [
        ("import sys; print('no such flag'); sys.exit(3)", "server_died", "exit code 3"),
        ("import sys; print('std::bad_alloc'); sys.exit(1)", "out_of_memory", "memory"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "out_of_memory", "signal 9"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "server_died", "signal 11"),
    ],
)
def test_how_a_server_ended_is_told_with_its_last_words(
    tmp_path: Path, program: str, kind: str, word: str
) -> None:
    with process.serve(
        Launch([sys.executable, "-c", program], {}, tmp_path / "log", tmp_path)
    ) as server:
        server.supervisor.wait(10)
        with pytest.raises(Failure) as caught:
            check(server, "before it was ready")

    assert caught.value.kind == kind
    assert word in caught.value.reason


def test_a_taken_port_names_its_holder() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(
            Failure, match=f"Port {port} of 127.0.0.1 is taken by .*process {os.getpid()}"
        ):
            process.claim_port(port)

    assert process.claim_port(port) == port


def test_tokens_do_not_reach_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with process.serve(
        Launch(
            [sys.executable, "-c", "import os; print(dict(os.environ))"],
            {"EXTRA": "yes"},
            tmp_path / "log",
            tmp_path,
        )
    ) as server:
        server.supervisor.wait(10)

    said = (tmp_path / "log").read_text()
    assert "hf_secret" not in said
    assert "'EXTRA': 'yes'" in said
