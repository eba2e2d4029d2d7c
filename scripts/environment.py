"""Make what a backend runs in: a Python environment from its hashed lock, once per lock, interpreter and machine; or a container image."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import runtime
from pipeline import stage
from pipeline.failure import Failure
from pipeline.spec import Environment, from_json

log = logging.getLogger(__name__)
LOCKS = Path(__file__).resolve().parent.parent / "envs"


def install(lock: Path, extra_index_url: str | None, folder: Path) -> dict[str, Any]:
    """Make a virtual environment in `folder`; facts: its `python`, all `packages` with versions, and the
    `versions` of those that the lock was made for.

    Tries the configured package indexes first and the extra one only if a locked file is not found there. Hashes are
    checked either way. Failure `install_failed` with pip's last words.
    """
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    done = pip(python, lock, [])
    if done.returncode and extra_index_url and "No matching distribution" in done.stdout:
        log.info("not on the configured package indexes; trying %s as well", extra_index_url)
        done = pip(python, lock, ["--extra-index-url", extra_index_url])
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-15:])
        raise Failure(
            "install_failed",
            f"The environment {lock.stem} could not be installed: {tail.splitlines()[-1] if tail else 'pip said nothing'}",
            f"See that the package index is reachable and has every file of envs/{lock.name}; `extra_index_url` in the configuration names a further one.",
            tail,
        )
    installed = packages(python)
    return {
        "python": str(python),
        "packages": installed,
        "versions": {name: installed[name] for name in asked(lock) if name in installed},
    }


def asked(lock: Path) -> list[str]:
    """The packages that a lock was made for: those its .in file names."""
    return re.findall(
        r"^([A-Za-z0-9][A-Za-z0-9._-]*)", lock.with_suffix(".in").read_text(), re.MULTILINE
    )


def pip(python: Path, lock: Path, options: list[str]) -> subprocess.CompletedProcess[str]:
    """Install a lock with one pip a core, each a share of its packages: a lock needs no resolving, so they are independent.
    Dealt forth and back, since the largest of a family tend to be neighbours in the alphabet.

    Gives the first that failed, or one that did not; pip's lines go to the log as they come.
    """
    blocks = re.findall(r"^\S+==(?:.|\n(?=\s))*", lock.read_text(), re.MULTILINE)
    shares = min(os.cpu_count() or 1, len(blocks))
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(shares) as pool:
        parts = [Path(scratch, f"{number}.txt") for number in range(shares)]
        for number, part in enumerate(parts):
            mine = [
                block
                for place, block in enumerate(blocks)
                if place % (2 * shares) in (number, 2 * shares - 1 - number)
            ]
            part.write_text("\n".join(mine) + "\n")
        command = [
            str(python),
            "-m",
            "pip",
            "install",
            "--no-input",
            "--disable-pip-version-check",
            "--no-deps",
            "--require-hashes",
            *options,
        ]
        done = list(pool.map(lambda part: run([*command, "--requirement", str(part)]), parts))
    return next((one for one in done if one.returncode), done[0])


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    lines = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout
        for line in process.stdout:
            lines.append(line)
            if line.startswith(("Collecting", "ERROR", "Installing", "Successfully")):
                log.info("%s", line.rstrip()[:120])
    return subprocess.CompletedProcess(command, process.returncode, "".join(lines))


def packages(python: Path, env: dict[str, str] | None = None) -> dict[str, str]:
    """Installed distributions and versions of an interpreter."""
    listing = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    return dict(
        sorted(
            json.loads(
                subprocess.check_output(
                    [str(python), "-c", listing], text=True, env=os.environ | (env or {})
                )
            ).items()
        )
    )


def make(environment: Environment, folder: Path) -> dict[str, Any]:
    """What a backend runs in, by its kind (spec.Environment)."""
    if environment.runtime:
        return runtime.load(environment.runtime).prepare(environment, folder)
    if environment.lock:
        return install(
            LOCKS / f"{environment.lock}.txt", os.environ.get("SHOWDOWN_EXTRA_INDEX_URL"), folder
        )
    python = Path(str(environment.interpreter))
    return {"python": str(python), "packages": packages(python, environment.env), "versions": {}}


def main() -> None:
    job = stage.task(__doc__)
    environment: Environment = from_json(Environment, job.spec)
    stage.prepare(job, "environment", lambda folder: make(environment, folder), [], hashed=False)


if __name__ == "__main__":
    main()
