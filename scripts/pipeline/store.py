"""Content-addressed artefact store, shared between checkouts and users.

An entry is `<root>/<stage>/<key>/`, its bytes below `data/`. It exists once its `manifest.json` does, which is written
last and whole; whatever lies there without one was cut short and is made anew. A lock keeps two makers apart.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipeline.artifact import Manifest, Unreadable, inventory, read_json, sha256, write_json

log = logging.getLogger(__name__)
# Of results and manifests: raised where older ones can no longer be read.
FORMAT = 2


def root() -> Path:
    """The store's folder: $SHOWDOWN_STORE (the configuration's `store` sets it), else below the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (
        Path(os.environ.get("SHOWDOWN_STORE") or cache / "llm-backend-showdown")
        .expanduser()
        .absolute()
    )


def key(spec: dict[str, Any], code: str) -> str:
    """Name of what this specification and this code make: 20 hex digits."""
    return hashlib.sha256(json.dumps([FORMAT, spec, code], sort_keys=True).encode()).hexdigest()[
        :20
    ]


def obtain(
    store: Path,
    stage: str,
    spec: dict[str, Any],
    code: str,
    make: Callable[[Path], dict[str, Any]],
    hashed: bool = True,
) -> Manifest:
    """Find the artefact, or make it.

    `make` fills the folder it is given and returns the artefact's facts; a fact `path` says that the bytes lie
    elsewhere (the Hugging Face cache, another artefact), `files` that their inventory is known already, `peak_memory_bytes` what
    others than this process's children took. `hashed=False` spares the inventory where a lock file already fixes every byte.
    Whatever `make` raises is raised, and the half-made entry removed.
    """
    name = key(spec, code)
    entry = store / stage / name
    entry.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(entry.with_suffix(".lock")):
        if (entry / "manifest.json").exists():
            found, reason = stored(entry)
            if found and reason is None:
                log.info("%s %s: found in the store", stage, name)
                return found
            log.warning("%s %s: made again, since %s", stage, name, reason)
        shutil.rmtree(entry, ignore_errors=True)
        data = entry / "data"
        data.mkdir(parents=True)
        started = time.monotonic()
        try:
            facts = make(data)
            path = Path(facts.pop("path", data))
            files = facts.pop("files", None)
            largest = 1024 * max(
                resource.getrusage(who).ru_maxrss
                for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
            )
            made = Manifest(
                stage=stage,
                key=name,
                spec=spec,
                entry=str(entry),
                path=str(path),
                files=(inventory(path) if hashed else []) if files is None else files,
                peak_memory_bytes=facts.pop("peak_memory_bytes", largest),
                facts=facts,
                duration_s=round(time.monotonic() - started, 3),
            )
            note_times(made)
            made.save(entry / "manifest.json")
        except BaseException:
            shutil.rmtree(entry, ignore_errors=True)
            raise
    return made


def stored(entry: Path) -> tuple[Manifest | None, str | None]:
    """The artefact of an entry, and why it has to be made again, if it has."""
    try:
        found = Manifest.load(entry / "manifest.json")
    except Unreadable as error:
        return None, str(error)
    if found.entry != str(entry):
        return found, f"it was copied here from {found.entry}, and names that place"
    return found, lost(found, note=True)


def lost(artefact: Manifest, note: bool = False) -> str | None:
    """Why the bytes are no longer those of the manifest; None if they are.

    A file is read again only if its modification time moved, as git does with its index; `note`: write new times down.
    """
    folder = Path(artefact.path)
    interpreter = artefact.facts.get("python")
    for path in (folder, *([Path(interpreter)] if interpreter else [])):
        if not path.exists():
            return f"{path} is gone"
    try:
        times = read_json(times_file(artefact))
    except Unreadable:
        times = {}
    moved = False
    for entry in artefact.files:
        path = folder / entry["path"]
        if not path.is_file():
            return f"{path} is gone"
        status = path.stat()
        if status.st_size != entry["bytes"]:
            return f"{path} has {status.st_size} bytes instead of {entry['bytes']}"
        if status.st_mtime_ns != times.get(entry["path"]):
            if sha256(path) != entry["sha256"]:
                return f"the content of {path} has changed"
            moved = True
    if moved and note:
        note_times(artefact)
    return None


def note_times(artefact: Manifest) -> None:
    folder = Path(artefact.path)
    write_json(
        times_file(artefact),
        {entry["path"]: (folder / entry["path"]).stat().st_mtime_ns for entry in artefact.files},
    )


def times_file(artefact: Manifest) -> Path:
    return Path(artefact.entry) / "times.json"
