"""What the commands of all stages share: their task, the log, the signals, and how a failure becomes a result."""

from __future__ import annotations

import argparse
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pipeline import failure, results, store
from pipeline.artifact import Manifest, read_json
from pipeline.failure import Failure

log = logging.getLogger(__name__)
T = TypeVar("T")
# Names the process that is to be outlived by no job of its own: Snakemake's.
PARENT = "SHOWDOWN_PARENT"


@dataclass(frozen=True)
class Task:
    """What one job is to make: `spec` and `code`, which make its `key`; the results it reads, by name; where it writes.
    `results`: of the report alone, all results by stage and name of their job.

    Written by config/plan.py into a file, because a command line holds 128 KiB.
    """

    spec: dict[str, Any]
    code: str
    key: str
    inputs: dict[str, list[Path]]
    log: Path
    output: Path
    results: dict[str, dict[str, Path]] = field(default_factory=dict)

    def manifest(self, name: str) -> Manifest:
        """The artefact that is read under this name."""
        [path] = self.inputs[name]
        return Manifest.load(path)

    def file(self, name: str) -> Path | None:
        """The local file or folder that is read under this name, if one is."""
        return next(iter(self.inputs.get(name, [])), None)

    def optional(self, name: str) -> Manifest | None:
        return self.manifest(name) if self.inputs.get(name) else None


def task(description: str | None) -> Task:
    """The task of the command line: --spec FILE, --log, --output. Begins the log and makes signals unwind like an exception."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--spec", required=True, type=Path, help="JSON: spec, code, inputs of the job"
    )
    parser.add_argument(
        "--log", required=True, type=Path, help="file that gets what standard error gets"
    )
    parser.add_argument("--output", required=True, type=Path, help="result to write")
    args = parser.parse_args()
    listen(args.log)
    given = read_json(args.spec)
    spec, code = given["spec"], given["code"]
    inputs = {name: [Path(path) for path in paths] for name, paths in given["inputs"].items()}
    found = {
        stage: {name: Path(path) for name, path in paths.items()}
        for stage, paths in given.get("results", {}).items()
    }
    return Task(spec, code, store.key(spec, code), inputs, args.log, args.output, found)


def listen(log_file: Path) -> None:
    """Log to standard error and to the stage's log; make signals unwind like an exception; end with Snakemake."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [
        logging.StreamHandler(),
        logging.FileHandler(log_file),
    ]
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", handlers=handlers
    )
    sys.excepthook = lambda kind, error, trace: log.critical(
        "uncaught", exc_info=(kind, error, trace)
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)

    def leave(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    # SIGINT as well: in a job of a background shell it is ignored until somebody asks for it.
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, leave)
    if os.environ.get(PARENT):
        end_with(int(os.environ[PARENT]))


def end_with(parent: int) -> None:
    """End this process, as SIGTERM does, as soon as that one has ended, however it ended."""
    try:
        handle = os.pidfd_open(parent)
    except ProcessLookupError:
        sys.exit("the Snakemake that started this job is gone")

    def watch() -> None:
        select.select([handle], [], [])
        log.warning("the Snakemake that started this job is gone: ending")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def attempt(work: Callable[[], T], where: Path) -> tuple[T | None, Failure | None]:
    """Do the work; gives what it gave, or the Failure it ended in. Anything unclassified is raised.

    `where`: whose disk it is, if one is full.
    """
    try:
        return work(), None
    except Failure as error:
        known = error
    except OSError as error:
        full = failure.of_os_error(error, where)
        if full is None:
            raise
        known = full
    log.error("%s: %s %s", known.kind, known.reason, known.remedy)
    return None, known


def prepare(
    job: Task,
    stage: str,
    make: Callable[[Path], dict[str, Any]],
    inputs: list[Manifest],
    hashed: bool = True,
) -> None:
    """Run a preparing stage: find or make the artefact in the store and write its manifest.

    A failed input fails this artefact with the same words; a failure of its own is written down in place of the bytes.
    """
    where = store.root()

    def work() -> Manifest:
        for manifest in inputs:
            usable(manifest)
        return store.obtain(where, stage, job.spec, job.code, make, hashed)

    made, failed = attempt(work, where)
    if failed:
        made = Manifest(stage, job.key, job.spec, entry="", path="", failure=failed.to_json())
    results.write(job.output, vars(made))


def usable(artefact: Manifest) -> Manifest:
    """The artefact itself; Failure `not_prepared` if making it had failed."""
    if artefact.failure:
        reason = f"{artefact.stage}: {artefact.failure['reason']}"
        raise Failure(
            "not_prepared", reason, artefact.failure["remedy"], artefact.failure["log_tail"]
        )
    return artefact
