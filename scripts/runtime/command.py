"""Run one command of a preparing stage to its end: what it says goes to its log, how far it is to ours."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import runtime
from host.memory import resident
from pipeline.failure import Failure
from runtime import Launch

log = logging.getLogger(__name__)
POLL_S, PROGRESS_S = 0.2, 10


def run(launch: Launch, runs: str, kind: str) -> int:
    """Run it by the runtime `runs`; gives the largest memory of its processes together, bytes. Failure `kind` with its last words.

    Its last line is told every 10 s if it is a new one: programs that work layer by layer say which.
    """
    started = told = time.monotonic()
    said = ""
    peak = 0
    with runtime.load(runs).serve(launch) as process:
        while (code := process.exit_code()) is None:
            time.sleep(POLL_S)
            peak = max(peak, resident(process.tree()))
            if time.monotonic() - told > PROGRESS_S:
                told = time.monotonic()
                if (line := last_words(launch.log_file)) != said:
                    said = line
                    log.info("%s: %.0f s  %s", Path(launch.argv[0]).name, told - started, said)
        if code:
            if process.out_of_memory():
                raise Failure(
                    kind,
                    f"{launch.argv[0]} ran out of memory.",
                    "Do it on a larger machine, or with a smaller model.",
                    runtime.tail(launch.log_file),
                )
            words = f"{' '.join(launch.argv[:4])} ended with exit code {code}: {last_words(launch.log_file)}"
            raise Failure(
                kind, words, "Its last words stand in the log.", runtime.tail(launch.log_file)
            )
    return peak


def last_words(log_file: Path) -> str:
    """The last line that holds anything; a progress bar's, as it stood last."""
    lines = [
        line.strip()
        for line in runtime.tail(log_file, 5).replace("\r", "\n").splitlines()
        if line.strip()
    ]
    return lines[-1][:160] if lines else ""
