"""What a branch, a tag or an image's tag meant when it was first used: the lock file beside a configuration."""

from __future__ import annotations

import logging
from pathlib import Path

import yaml

from pipeline.failure import Failure

log = logging.getLogger(__name__)
HEADER = """\
# Written by LLM Backend Showdown: what each branch or tag meant when it was first used, so that
# every machine gets the same bytes. Keep it in version control.
# To move it: python scripts/pin.py {name}
"""

# Kind of what is locked -> 'name@revision' -> commit or digest.
Lock = dict[str, dict[str, str]]


def path_of(config_file: str) -> Path:
    """The lock of a configuration: config.lock.yaml beside config.yaml."""
    return Path(config_file).with_suffix(".lock.yaml")


def read(path: Path) -> Lock:
    """The lock; empty if there is none. Failure `bad_lock` where it is not one, such as one with merge conflicts."""
    if not path.exists():
        return {}
    try:
        lock = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        where = f", line {line + 1}" if line is not None else ""
        raise unreadable(path, f"it is not YAML{where}") from error
    if not isinstance(lock, dict):
        raise unreadable(path, "it does not map kinds to entries")
    for kind, entries in lock.items():
        if kind not in ("image", "model", "dataset") or not isinstance(entries, dict):
            raise unreadable(path, f"'{kind}' is not image, model or dataset with its entries")
        for entry, meaning in entries.items():
            if not isinstance(entry, str) or not isinstance(meaning, str) or "/" in meaning:
                raise unreadable(
                    path, f"{kind} {entry}: {meaning!r} is neither a commit nor a digest"
                )
    return lock


def unreadable(path: Path, reason: str) -> Failure:
    remedy = f"Resolve its merge conflict, or restore it from version control; or remove {path} to pin anew."
    return Failure("bad_lock", f"{path} cannot be read as a lock file: {reason}.", remedy)


def add(path: Path, new: Lock) -> None:
    """Write new entries beside those that are there."""
    lock = read(path)
    for kind, entries in new.items():
        lock.setdefault(kind, {}).update(entries)
    write(path, lock)


def write(path: Path, lock: Lock) -> None:
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(HEADER.format(name=path) + yaml.safe_dump(lock))
    beside.replace(path)


def ask(kind: str, name: str, revision: str) -> str:
    """What a revision means now: a commit ('model', 'dataset') or a digest ('image'); Failure where nobody can say."""
    # The clients are only loaded where one is needed: planning is quick without them.
    if kind == "image":
        from runtime import docker_engine

        return docker_engine.digest(name, revision)
    from models import hub

    return hub.commit_of(kind, name, revision)


class Pins:
    """The lock of one configuration while it is planned: asks for what it lacks, and keeps that in `new` until `save`."""

    def __init__(self, path: Path):
        self.path = path
        self.lock = read(path)
        self.new: Lock = {}

    def pin(self, kind: str, name: str, revision: str) -> str:
        """The commit or digest that `revision` of `name` is pinned to. Failure as `ask`."""
        entry = f"{name}@{revision}"
        known = self.lock.get(kind, {}).get(entry) or self.new.get(kind, {}).get(entry)
        if known is None:
            known = ask(kind, name, revision)
            self.new.setdefault(kind, {})[entry] = known
        log.warning("%s %s: '%s' is pinned to %s (%s)", kind, name, revision, known, self.path)
        return known

    def save(self) -> None:
        if self.new:
            add(self.path, self.new)
