"""A job's result file: named by the job's key, so that it is there or it is not; and why one that is there does not stand.

`<results>/<stage>/<name>/<key>.json`, or `<key>-2.json` for the second attempt at the same key. A folder holds one: whoever
writes a result removes what the folder held before. Beside what its stage says, a result has

key      of the job that made it
parts    files below its folder that belong to it: {relative path: {bytes, sha256}}
made_of  the results it was made of: {folder of the result: sha256 of what was read}
retry    why the next run should try again, or None
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pipeline.artifact import Unreadable, read_json, sha256, write_json

NAME = re.compile(r"(?P<key>[0-9a-f]{20})(-(?P<attempt>\d+))?\.json")


def name(key: str, attempt: int) -> str:
    """File name of an attempt, which are counted from 1."""
    return f"{key}.json" if attempt == 1 else f"{key}-{attempt}.json"


def attempts(folder: Path, key: str) -> int:
    """The number of the newest attempt at this key; 0 if there is none."""
    if not folder.is_dir():
        return 0
    found = (NAME.fullmatch(path.name) for path in folder.iterdir())
    return max((int(match["attempt"] or 1) for match in found if match and match["key"] == key), default=0)


def write(target: Path, value: dict[str, Any]) -> None:
    """Write a result and remove what its folder held before."""
    write_json(target, value)
    for path in target.parent.iterdir():
        if NAME.fullmatch(path.name) and path.name != target.name:
            path.unlink(missing_ok=True)


def part(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def read(path: Path, key: str, expected: Collection[str] = ()) -> tuple[dict[str, Any], str]:
    """A result and the hash of its file; Unreadable if it is not one of this key, if its parts are gone or cut, or if it
    does not name those that are expected."""
    value, digest = read_json(path), sha256(path)
    value.setdefault("made_of", {})
    if value.get("key") != key:
        raise Unreadable(f"{path} says that it belongs to another key")
    parts, made_of = value.get("parts", {}), value.get("made_of", {})
    if not isinstance(parts, dict) or not isinstance(made_of, dict):
        raise Unreadable(f"{path} is not a result of this version")
    if not set(expected) <= set(parts):
        lacking = ", ".join(sorted(set(expected) - set(parts)))
        raise Unreadable(f"{path} does not name {lacking}")
    for relative, said in parts.items():
        file = path.parent / relative
        if not file.is_file():
            raise Unreadable(f"{file} is gone")
        if not isinstance(said, dict) or file.stat().st_size != said.get("bytes"):
            raise Unreadable(f"{file} has another length than was written")
    return value, digest


def made_of(*paths: Path) -> dict[str, str]:
    """What a result says that it was made of: of each of these the folder, and the hash of the file."""
    return {str(path.parent): sha256(path) for path in paths}
