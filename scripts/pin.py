"""Move the pins of a configuration: ask anew what its branches and tags mean, and print what changed.

    python scripts/pin.py config.lock.yaml [NAME...]

Asks for all entries of the lock file, or for the named ones (with or without @revision). Nothing else moves a pin.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from config import pins
from pipeline.failure import Failure


def move(path: Path, names: list[str]) -> list[str]:
    """Ask anew for entries of a lock; gives a line for each that changed."""
    lock, changed = pins.read(path), []
    for kind, entries in lock.items():
        for entry, old in entries.items():
            name, _, revision = entry.rpartition("@")
            if names and not {entry, name} & set(names):
                continue
            entries[entry] = pins.ask(kind, name, revision)
            if entries[entry] != old:
                changed.append(f"{kind} {entry}: {old} -> {entries[entry]}")
    pins.write(path, lock)
    return changed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("lock", type=Path)
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    if not args.lock.is_file():
        parser.error(
            f"there is no {args.lock}; it is written when a configuration with a branch or a tag is first used"
        )
    try:
        print("\n".join(move(args.lock, args.names)) or "nothing has moved")
    except Failure as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
