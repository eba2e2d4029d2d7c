"""What the rules ask while the workflow is planned: each job's specification and code, and whether old results still stand.

A job's key hashes both, and goes into the specifications of the jobs that use its artefact. So a change anywhere reaches
all that depends on it, and an artefact that is made again from the same specification reaches nothing.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import fingerprint
import store
from experiment import CONVERTER, Experiment, environment, locate
from failure import RETRIED
from manifest import Manifest
from spec import to_json

PREPARING = ("environment", "download", "prompts", "quantize", "build")
PIPELINE = "pipeline"


@dataclass(frozen=True)
class Job:
    """Identity of what a job makes: `spec` as sorted JSON, `code` as a fingerprint."""

    spec: str
    code: str

    @property
    def key(self) -> str:
        return store.key(json.loads(self.spec), self.code)


@dataclass
class Plan:
    """The jobs of an experiment, by their wildcards."""

    experiment: Experiment
    scripts: Path

    def code(self, *files: str) -> str:
        return fingerprint.code(self.scripts, *files)

    @cached_property
    def environments(self) -> list[str]:
        """Names of all environments that the experiment may need."""
        used = {backend.environment.name or PIPELINE for backend in self.experiment.backends.values()}
        return sorted(used | ({CONVERTER} if any(model.converter for model in self.experiment.models.values()) else set()))

    def environment_of(self, backend: str) -> str:
        return self.experiment.backends[backend].environment.name or PIPELINE

    def converter_of(self, model: str) -> list[str]:
        """The environment that makes the model's checkpoint, if one is needed."""
        return [CONVERTER] if self.experiment.models[model].converter else []

    def environment(self, name: str) -> Job:
        """A lock fixes every byte, so the code that installs it is left out."""
        if name == PIPELINE:
            return Job(to_json({"interpreter": sys.executable}), "")
        return Job(to_json(environment(name)), "")

    def download(self, model: str) -> Job:
        made = self.experiment.models[model]
        return Job(to_json({"weights": made.weights, "converter": made.converter}), self.code("download.py", "checkpoints/from_gguf.py", "checkpoints/random_weights.py"))

    def prompts(self, model: str, workload: str) -> Job:
        spec = {"model": self.download(model).key, "prompts": self.experiment.workloads[workload].prompts, "seed": self.experiment.config["seed"]}
        return Job(to_json(spec), self.code("prompts.py"))

    def prompt_file(self, workload: str) -> list[str]:
        """The local file of a workload's prompts, if they come from one."""
        path = self.experiment.workloads[workload].prompts.path
        return [str(locate(path))] if path else []

    def quantize(self, model: str, quantization: str) -> Job:
        spec = {"model": self.download(model).key, "quantization": self.experiment.quantizations[quantization]}
        return Job(to_json(spec), self.code("quantize.py"))

    def build(self, model: str, quantization: str, backend: str) -> Job:
        spec = {"weights": self.quantize(model, quantization).key, "backend": self.experiment.backends[backend]}
        return Job(to_json(spec), self.code("build.py", *self.adapter(backend)))

    def measure(self, model: str, quantization: str, backend: str, workload: str, concurrency: str, trial: str) -> Job:
        spec = {
            "cell": self.experiment.cell(model, quantization, backend, workload, concurrency, trial),
            "engine": self.build(model, quantization, backend).key,
            "prompts": self.prompts(model, workload).key,
        }
        return Job(to_json(spec), self.code("measure.py", "runtime/supervise.py", *self.adapter(backend)))

    def adapter(self, backend: str) -> list[str]:
        """The files of one backend."""
        name = self.experiment.backends[backend].adapter
        files = [f"backends/{name}.py", f"servers/{name}_server.py"]
        return [file for file in files if (self.scripts / file).is_file()]


def any_of(names: Iterable[str]) -> str:
    """A pattern for a wildcard that matches exactly these names."""
    return "|".join(sorted({re.escape(name) for name in names}))


def recheck(results: Path) -> None:
    """See that old results still stand; what does not is made again, and a line says why.

    A preparation that failed, or whose bytes are gone or changed, loses its manifest: whoever needs it makes it again. A
    cell that failed for the machine rather than for its server (failure.RETRIED), or whose records are gone, gets a new
    `again` file: an input that makes Snakemake measure it, while its old results stay until the new ones are there.
    """
    for path in (path for stage in PREPARING for path in sorted((results / stage).rglob("*.json"))):
        manifest = Manifest.load(path)
        reason = manifest.failure["reason"] if manifest.failure else store.lost(manifest)
        if reason:
            tell(path, reason)
            path.unlink()
    for path in sorted((results / "measure").rglob("cell.json")):
        cell = json.loads(path.read_text())
        records = path.with_name(cell["records"]["path"]) if "records" in cell else None
        if cell["failure"] and RETRIED[cell["failure"]["kind"]]:
            reason = cell["failure"]["reason"]
        elif records and not (records.is_file() and records.stat().st_size == cell["records"]["bytes"]):
            reason = "its records are gone or have another length"
        else:
            continue
        tell(path, reason)
        path.with_name("again").write_text(f"{time.time_ns()} {reason}\n")


def again(results: str, cell: str) -> list[str]:
    """The cell's `again` file, if it was ever to be measured again."""
    path = Path(results, "measure", cell, "again")
    return [str(path)] if path.exists() else []


def tell(path: Path, reason: str) -> None:
    print(f"{path}: to be made again: {reason}", file=sys.stderr)
