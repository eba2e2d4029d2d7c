"""What a stored artefact is: its identity, its files, where they lie, what it cost to make."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Manifest:
    """One artefact of a preparing stage; a small JSON file in the results, and beside the bytes in the store.

    `entry` is the folder in the store, `path` the one that holds the bytes (inside it, or a cache of somebody else's);
    `files` lists {path, bytes, sha256}, paths relative to `path`; `duration_s` is wall time, `peak_memory_bytes` the
    largest resident size of one process; `failure` is None or what scripts/failure.py says of it.
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
        return cls(**json.loads(source.read_text()))

    def file(self, name: str) -> Path:
        """Path of the file or folder that `facts` calls `name`, such as 'gguf' or 'hf'; KeyError if there is none."""
        return Path(self.path, self.facts[name])

    @property
    def bytes(self) -> int:
        return sum(entry["bytes"] for entry in self.files)


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
    return [{"path": str(path.relative_to(folder)), "bytes": path.stat().st_size, "sha256": sha256(path)} for path in files]
