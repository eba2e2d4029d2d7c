"""Which results stand, and which file each job is to write: what is not there is made, by Snakemake.

A result is made again under a new name, which is the next attempt at its key, where it cannot be read or lacks a part,
where it says that another try is worth it, or where what it was made of has been made again. What only prepares is made
again where its bytes are lost or its making had failed, but only if a result that does not stand needs it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import runtime
from config.jobs import RESULTS, Job
from pipeline import results, store
from pipeline.artifact import Manifest, Unreadable, read_json


def choose_files(jobs: Iterable[Job], folder: Path) -> dict[Job, Path]:
    """The file of each job, below the results folder; `jobs` in an order in which what is needed comes first."""
    jobs = list(jobs)
    digests: dict[Job, str | None] = {}
    files: dict[Job, Path] = {}
    for job in jobs:
        if job.stage in RESULTS:
            digests[job] = digest_of(job, folder, digests)
            files[job] = newest(job, folder) if digests[job] else next_attempt(job, folder)
    needed = [one for job, digest in digests.items() if digest is None for one in inputs_of(job)]
    while needed:
        job = needed.pop()
        if job not in files and unsound(job, folder):
            files[job] = next_attempt(job, folder)
            needed += inputs_of(job)
        files.setdefault(job, newest(job, folder))
    return {job: files.get(job) or newest(job, folder) for job in jobs}


def inputs_of(job: Job) -> Iterator[Job]:
    for needed in job.inputs.values():
        yield from needed


def newest(job: Job, folder: Path) -> Path:
    """The latest attempt at a job; the first, if there was none."""
    place = folder / job.stage / job.name
    return place / results.name(job.key, max(results.attempts(place, job.key), 1))


def next_attempt(job: Job, folder: Path) -> Path:
    place = folder / job.stage / job.name
    return place / results.name(job.key, results.attempts(place, job.key) + 1)


def digest_of(job: Job, folder: Path, digests: dict[Job, str | None]) -> str | None:
    """The hash of a result that stands; None of one that does not, with a line that says why where one is there.

    `digests`: those of the jobs that it needs.
    """
    file = newest(job, folder)
    if not file.exists():
        return None
    try:
        result, digest = results.read(file, job.key, job.parts)
    except Unreadable as error:
        tell(f"{file}: will be made again: {error}")
        return None
    if result.get("retry"):
        tell(f"{file}: will be made again: {result['retry']}")
        return None
    for one in inputs_of(job):
        if one.stage in RESULTS and (
            digests[one] is None
            or made_of(result, one, folder) != digest_read(job, one, folder, digests)
        ):
            return None
    return digest


def made_of(result: dict[str, object], needed: Job, folder: Path) -> object:
    """What a result says that it was made of, of what one job wrote."""
    said = result["made_of"]
    return said.get(str(folder / needed.stage / needed.name)) if isinstance(said, dict) else None


def digest_read(job: Job, needed: Job, folder: Path, digests: dict[Job, str | None]) -> str | None:
    """The hash of what a job reads of another's result: all of it, but of a session `assess` reads the answers alone."""
    if job.stage != "assess":
        return digests[needed]
    return str(read_json(newest(needed, folder))["parts"]["quality.json"]["sha256"])


def unsound(job: Job, folder: Path) -> str | None:
    """Why a prepared artefact has to be made again, said on standard error as well; None if it is as it was made."""
    file = newest(job, folder)
    if not file.exists():
        return "it is not there"
    try:
        manifest = Manifest.load(file)
        reason = manifest.failure["reason"] if manifest.failure else store.lost(manifest)
        if manifest.key != job.key:
            reason = "it says that it belongs to another key"
        if not reason and "runtime" in manifest.facts:
            reason = runtime.load(manifest.facts["runtime"]).missing(manifest.facts)
    except Unreadable as error:
        reason = str(error)
    if reason:
        tell(f"{file}: will be made again: {reason}")
    return reason


def tell(line: str) -> None:
    print(line, file=sys.stderr)
