"""What a branch, a tag or an image's tag of the configuration meant when it was first used, kept in a file beside it.

    python scripts/lock.py config.lock.yaml [NAME...]

moves the lock: asks anew for all its entries, or for the named ones, and prints what changed. Nothing else moves it.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path

import yaml

import hub
from runtime import docker

log = logging.getLogger(__name__)
HEADER = """# Written by LLM Backend Showdown: what each branch or tag meant when it was first used, so that every machine gets the same
# bytes. Keep it in version control. To move it: python scripts/lock.py {name}
"""

Lock = dict[str, dict[str, str]]
# Kind of what is locked -> how to ask what a name and a revision of it mean now.
ASK: dict[str, Callable[[str, str], str]] = {
    "image": docker.digest,
    "model": lambda name, revision: hub.commit_of("model", name, revision),
    "dataset": lambda name, revision: hub.commit_of("dataset", name, revision),
}


def path_of(config_file: str) -> Path:
    """The lock of a configuration: config.lock.yaml beside config.yaml."""
    return Path(config_file).with_suffix(".lock.yaml")


def read(path: Path) -> Lock:
    return yaml.safe_load(path.read_text()) or {} if path.exists() else {}


def write(path: Path, lock: Lock) -> None:
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(HEADER.format(name=path) + yaml.safe_dump(lock))
    beside.replace(path)


def pin(path: Path, kind: str, name: str, revision: str) -> str:
    """The commit or digest that `revision` of `name` is locked to. If there is none, it is asked for and locked.

    Says every time that the revision itself would move. Failure as hub.commit_of.
    """
    lock = read(path)
    entry = f"{name}@{revision}"
    known = lock.get(kind, {}).get(entry)
    if known is None:
        known = ASK[kind](name, revision)
        lock.setdefault(kind, {})[entry] = known
        write(path, lock)
    log.warning("%s %s: '%s' may move; this run takes %s, as %s says.", kind, name, revision, known, path)
    return known


def move(path: Path, names: list[str]) -> list[str]:
    """Ask anew for the entries of a lock (of these names, with or without @revision; all, if none is given), and give a line for each that changed."""
    lock, changed = read(path), []
    for kind, entries in lock.items():
        for entry, old in entries.items():
            name, _, revision = entry.rpartition("@")
            if names and not {entry, name} & set(names):
                continue
            entries[entry] = ASK[kind](name, revision)
            if entries[entry] != old:
                changed.append(f"{kind} {entry}: {old} -> {entries[entry]}")
    write(path, lock)
    return changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lock", type=Path)
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    if not args.lock.is_file():
        parser.error(f"there is no {args.lock}; it is written when a configuration with a branch or a tag is first used")
    print("\n".join(move(args.lock, args.names)) or "nothing has moved")


if __name__ == "__main__":
    main()
