"""Result files: written whole or not at all, read with a reason where they cannot be; and the manifest of a stored artefact."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any


class Unreadable(Exception):
    """A file of the results or of the store that is not what was written there; the message names it."""


@dataclass(frozen=True)
class Manifest:
    """One artefact of a preparing stage; a small JSON file in the results, and beside the bytes in the store.

    `entry` is the folder in the store, `path` the one that holds the bytes (inside it, or a cache of somebody else's);
    `files` lists {path, bytes, sha256}, paths relative to `path`; `duration_s` is wall time, `peak_memory_bytes` the
    largest resident size of one process; `failure` is None or what pipeline/failure.py says of it.
    """

    stage: str
    key: str
    spec: dict[str, Any]
    entry: str
    path: str
    files: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    duration_s: float = 0.0
    peak_memory_bytes: int = 0
    failure: dict[str, str] | None = None

    def save(self, target: Path) -> None:
        write_json(target, asdict(self))

    @classmethod
    def load(cls, source: Path) -> Manifest:
        """Unreadable if the file is not a manifest of this version."""
        value = read_json(source)
        if set(value) != {entry.name for entry in fields(cls)}:
            raise Unreadable(f"{source} is not a manifest of this version")
        made = cls(**value)
        shapes = ((made.facts, dict), (made.files, list), (made.path, str), (made.entry, str))
        if not all(isinstance(value, kind) for value, kind in shapes):
            raise Unreadable(f"{source} is not a manifest of this version")
        if not all(
            isinstance(entry, dict) and {"path", "bytes", "sha256"} <= set(entry)
            for entry in made.files
        ):
            raise Unreadable(f"{source} does not list its files as {{path, bytes, sha256}}")
        return made

    def file(self, name: str) -> Path:
        """Path of the file or folder that `facts` calls `name`, such as 'gguf' or 'hf'; KeyError if there is none."""
        return Path(self.path, self.facts[name])

    @property
    def bytes(self) -> int:
        return sum(entry["bytes"] for entry in self.files)


def read_json(source: Path) -> dict[str, Any]:
    """The object in a JSON file; Unreadable if it is missing, cut, or something else."""
    try:
        value = json.loads(source.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise Unreadable(f"{source} cannot be read ({type(error).__name__}: {error})") from error
    if not isinstance(value, dict):
        raise Unreadable(f"{source} does not hold a JSON object")
    return value


def write_json(target: Path, value: Any) -> None:
    """Write beside, then rename: a reader sees the whole file or none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        beside.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def inventory(folder: Path) -> list[dict[str, Any]]:
    """Every file below the folder with its size and hash, links followed."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [
        {
            "path": str(path.relative_to(folder)),
            "bytes": path.stat().st_size,
            "sha256": sha256(path),
        }
        for path in files
    ]
