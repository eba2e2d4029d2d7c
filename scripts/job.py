"""What the commands of all stages share: the log, the signals, and how a failure becomes a result."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import failure
import store
from failure import Failure
from manifest import Manifest

log = logging.getLogger(__name__)


def arguments(description: str | None, *more: str) -> argparse.Namespace:
    """Parse the command line of a stage: --spec, --code, --log, --output and the stage's own options.

    An option that ends in `?` may be left out, or be given without a value, as a rule does whose input is empty.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--spec", required=True, type=json.loads, help="identity of what is made, JSON")
    parser.add_argument("--code", default="", help="fingerprint of the code that makes it")
    parser.add_argument("--log", type=Path, help="file that gets what standard error gets")
    parser.add_argument("--output", required=True, type=Path, help="manifest or result to write")
    for option in more:
        name = option.rstrip("?")
        parser.add_argument(f"--{name}", required=option == name, nargs=None if option == name else "?", type=Path)
    parsed = parser.parse_args()
    listen(parsed.log)
    return parsed


def listen(log_file: Path | None) -> None:
    """Log to standard error and to the stage's log; make signals unwind like an exception."""
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if log_file:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(log_file, mode="w"))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", handlers=handlers)
    sys.excepthook = lambda kind, error, trace: log.critical("uncaught", exc_info=(kind, error, trace))
    logging.getLogger("httpx").setLevel(logging.WARNING)

    def leave(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    # SIGINT as well: in a job of a background shell it is ignored until somebody asks for it.
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, leave)


def classified(work: Callable[[], Any], where: Path) -> Failure | None:
    """Do the work; return the Failure it ended in, or None. Anything unclassified is raised."""
    try:
        work()
    except Failure as error:
        log.error("%s: %s %s", error.kind, error.reason, error.remedy)
        return error
    except OSError as error:
        known = failure.of_os_error(error, where)
        if known is None:
            raise
        log.error("%s: %s %s", known.kind, known.reason, known.remedy)
        return known
    return None


def prepare(args: argparse.Namespace, stage: str, make: Callable[[Path], dict[str, Any]], inputs: list[Manifest], hashed: bool = True) -> None:
    """Run a preparing stage: find or make the artefact in the store and write its manifest to --output.

    A failed input fails this artefact with the same words; a failure of its own is written down in place of the bytes.
    """
    where = store.root()

    def work() -> None:
        for manifest in inputs:
            usable(manifest)
        store.obtain(where, stage, args.spec, args.code, make, hashed).save(args.output)

    failed = classified(work, where)
    if failed:
        Manifest(stage=stage, key=store.key(args.spec, args.code), spec=args.spec, entry="", path="", failure=failed.to_json()).save(args.output)


def usable(artefact: Manifest) -> Manifest:
    """The artefact itself; Failure `not_prepared` if making it had failed."""
    if artefact.failure:
        raise Failure("not_prepared", f"{artefact.stage}: {artefact.failure['reason']}", artefact.failure["remedy"], artefact.failure["log_tail"])
    return artefact
