"""What the rules ask while the workflow is planned: each job's specification and code, and whether old results still stand.

A job's key hashes both, and goes into the specifications of the jobs that use its artefact. So a change anywhere reaches
all that depends on it, and an artefact that is made again from the same specification reaches nothing.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import backends
import fingerprint
import runtime
import store
import telemetry
from experiment import CONVERTER, Experiment, environment, locate
from failure import RETRIED
from manifest import Manifest
from spec import Cell, Environment, Served, to_json

# The uses of a model's texts: to judge it by, and to calibrate a quantization with.
EVALUATION, CALIBRATION = "evaluation", "calibration-"
# The environment of lm-evaluation-harness.
HARNESS = "lm_eval"
# What of the server's settings an engine is built for.
BUILT_FOR = ("context_length", "max_sequences", "dtype", "tensor_parallel")


@dataclass(frozen=True)
class Job:
    """One job: the file it writes, `spec` as sorted JSON, `code` as a fingerprint. Both make its key."""

    path: Path
    spec: str
    code: str

    @property
    def key(self) -> str:
        return store.key(json.loads(self.spec), self.code)

    @property
    def settled(self) -> bool:
        """Whether what it wrote is there and tells of this very key."""
        return self.path.exists() and json.loads(self.path.read_text())["key"] == self.key

    @property
    def again(self) -> list[str]:
        """The file whose change makes Snakemake run the job again, if there ever was a reason (`recheck`)."""
        return [f"{self.path}.again"] if Path(f"{self.path}.again").exists() else []

    def redo(self, reason: str) -> None:
        print(f"{self.path}: to be made again: {reason}", file=sys.stderr)
        Path(f"{self.path}.again").write_text(f"{time.time_ns()} {reason}\n")


@dataclass
class Plan:
    """The jobs of an experiment, by their wildcards."""

    experiment: Experiment
    scripts: Path

    @property
    def results(self) -> Path:
        return Path(self.experiment.results)

    def code(self, *files: str) -> str:
        return fingerprint.code(self.scripts, *files)

    def made_by(self, *files: str) -> str:
        """Of the code only these files, not what they import: how a process is started and watched is no reason to quantize or build for hours again."""
        return "".join(fingerprint.own(self.scripts, file) for file in files)

    @cached_property
    def environments(self) -> dict[str, Environment]:
        """All environments that the experiment may need, by name."""
        used = [backend.environment for backend in self.experiment.backends.values()]
        if any(model.converter for model in self.experiment.models.values()) or self.experiment.evaluated():
            used.append(self.converter)
        used += [made.environment for made in self.experiment.quantizations.values() if made.environment]
        if self.experiment.evaluation.tasks and self.experiment.evaluated():
            used.append(environment(HARNESS))
        return {made.name: made for made in used}

    @cached_property
    def converter(self) -> Environment:
        """What converts and makes checkpoints."""
        python = self.experiment.config["converter_python"]
        return Environment("converter.python", "interpreter", interpreter=python) if python else environment(CONVERTER)

    def environment(self, name: str) -> Job:
        """A lock and a digest fix every byte, so the code that installs it is left out."""
        return Job(self.results / f"environment/{name}.json", to_json(self.environments[name]), "")

    def environment_of(self, backend: str) -> Job:
        return self.environment(self.experiment.backends[backend].environment.name)

    def converter_of(self, model: str) -> list[Job]:
        """The environment that makes the model's checkpoint, if one is needed."""
        return [self.environment(self.converter.name)] if self.experiment.models[model].converter else []

    def download(self, model: str) -> Job:
        made = self.experiment.models[model]
        spec = {"weights": made.weights, "converter": made.converter}
        return Job(self.results / f"download/{model}.json", to_json(spec), self.code("download.py", "checkpoints/from_gguf.py", "checkpoints/random_weights.py"))

    def prompts(self, model: str, workload: str) -> Job:
        spec = {"model": self.download(model).key, "prompts": self.experiment.workloads[workload].prompts, "seed": self.experiment.config["seed"]}
        return Job(self.results / f"prompts/{model}/{workload}.json", to_json(spec), self.code("prompts.py"))

    def prompt_file(self, workload: str) -> list[str]:
        """The local file of a workload's prompts, if they come from one."""
        path = self.experiment.workloads[workload].prompts.path
        return [str(locate(path))] if path else []

    def texts(self, model: str, use: str) -> Job:
        """The texts of a model for one use: evaluation, or calibration-<quantization>."""
        evaluation = self.experiment.evaluation
        spec: dict[str, Any] = {"model": self.download(model).key}
        if use == EVALUATION:
            spec |= {"text": evaluation.text, "prompts": evaluation.prompts, "seed": self.experiment.config["seed"]}
        else:
            made = self.experiment.quantizations[use.removeprefix(CALIBRATION)]
            spec |= {"calibration": made.calibration, "seed": made.seed}
        return Job(self.results / f"texts/{model}/{use}.json", to_json({name: value for name, value in spec.items() if value is not None}), self.code("texts.py"))

    def text_files(self, use: str) -> dict[str, list[str]]:
        """The local files of a use's texts, by the option that names them to texts.py."""
        if use == EVALUATION:
            asked = {"text": self.experiment.evaluation.text, "prompts": self.experiment.evaluation.prompts}
        else:
            calibration = self.experiment.quantizations[use.removeprefix(CALIBRATION)].calibration
            asked = {"text": calibration.prompts if calibration else None, "prompts": None}
        return {name: [str(locate(prompts.path))] if prompts and prompts.path else [] for name, prompts in asked.items()}

    @property
    def uses(self) -> list[str]:
        """Every use of texts, as the wildcard `use` has it."""
        return [EVALUATION, *(f"{CALIBRATION}{made.name}" for made in self.experiment.quantizations.values() if made.calibration)]

    def samples(self, model: str, quantization: str) -> list[Job]:
        """What a quantization is calibrated with, if it is."""
        return [self.texts(model, f"{CALIBRATION}{quantization}")] if self.experiment.quantizations[quantization].calibration else []

    def quantizer(self, quantization: str) -> list[Job]:
        """The environment of the program that quantizes, if it has one of its own."""
        made = self.experiment.quantizations[quantization].environment
        return [self.environment(made.name)] if made else []

    def quantize(self, model: str, quantization: str) -> Job:
        made = self.experiment.quantizations[quantization]
        spec = {"model": self.download(model).key, "quantization": dataclasses.replace(made, calibration=None), "samples": [job.key for job in self.samples(model, quantization)]}
        programs = [program for program in ("checkpoints/requantize.py", f"checkpoints/quantize_{made.method}.py") if (self.scripts / program).is_file()]
        return Job(self.results / f"quantize/{model}/{quantization}.json", to_json(spec), self.made_by("quantize.py", "methods.py", "weights.py", *programs))

    def build(self, model: str, quantization: str, backend: str) -> Job:
        """Where there is something to build, all that the engine is made for: sizes, and the GPU by name and compute capability."""
        made, server = self.experiment.backends[backend], self.experiment.server
        # What a build of a GGUF may run (OpenVINO's does); others have nothing to do with it.
        programs = ["checkpoints/requantize.py"] if made.builds and "gguf" in backends.load(made.adapter).WEIGHTS else []
        spec = {"weights": self.quantize(model, quantization).key, "backend": made}
        if made.builds:
            spec |= {"quantization": self.experiment.quantizations[quantization], "server": {name: getattr(server, name) for name in BUILT_FOR}, "gpu": telemetry.gpu_kind()}
            spec |= {"trust_remote_code": self.experiment.models[model].weights.trust_remote_code}
        return Job(self.results / f"build/{model}/{quantization}/{backend}.json", to_json(spec), self.made_by("build.py", *programs) + self.code(*self.adapter(backend)))

    def runtime(self, backend: str) -> list[str]:
        """The file of what starts a backend, which measure finds by name."""
        return [f"runtime/{self.experiment.backends[backend].runtime}.py"]

    def calibrate(self) -> Job:
        """The client's own error and ceiling, on this kind of host."""
        spec = {"calibration": self.experiment.config["calibration"], "host": {name: telemetry.host()[name] for name in ("cpu", "cores")}}
        return Job(self.results / "calibrate/client.json", to_json(spec), self.code("calibrate.py", "loadgen/null_server.py"))

    def measure(self, model: str, quantization: str, backend: str, workload: str, offered: str, trial: str | int) -> Job:
        cell = self.experiment.cell(model, quantization, backend, workload, offered, trial)
        spec = {"cell": cell, "engine": self.build(model, quantization, backend).key, "prompts": self.prompts(model, workload).key}
        return Job(self.results / f"measure/{cell.path}/cell.json", to_json(spec), self.code("measure.py", *self.serving_code(backend)))

    def reference(self, model: str) -> Job:
        made = self.experiment.models[model]
        spec = {"model": self.download(model).key, "texts": self.texts(model, EVALUATION).key, "environment": self.converter}
        spec |= {"answer_tokens": self.experiment.evaluation.answer_tokens, "trust_remote_code": made.weights.trust_remote_code}
        return Job(self.results / f"reference/{model}.json", to_json(spec), self.made_by("reference.py", "checkpoints/reference_answers.py"))

    def harness(self) -> list[Job]:
        """The environment of lm-evaluation-harness, if tasks are asked for."""
        return [self.environment(HARNESS)] if self.experiment.evaluation.tasks else []

    def probe(self, model: str, quantization: str, backend: str) -> Job:
        evaluation = self.experiment.evaluation
        spec: dict[str, Any] = {"served": self.experiment.serving(model, quantization, backend), "engine": self.build(model, quantization, backend).key}
        spec |= {"texts": self.texts(model, EVALUATION).key, "answer_tokens": evaluation.answer_tokens, "model": self.download(model).key}
        if evaluation.tasks:
            spec |= {"tasks": evaluation.tasks, "harness": [job.key for job in self.harness()]}
        return Job(self.results / f"probe/{model}/{quantization}/{backend}/probe.json", to_json(spec), self.code("probe.py", *self.serving_code(backend)))

    def serving_code(self, backend: str) -> list[str]:
        """The files that start and speak to one backend's server, which are found by name."""
        return ["runtime/supervise.py", *self.adapter(backend), *self.runtime(backend)]

    def prepared_for(self, cell: Cell) -> list[Job]:
        """Every preparing job that a cell's measurement rests on."""
        return [self.prompts(cell.model.name, cell.workload.name), *self.prepared_to_serve(cell.served)]

    def prepared_to_judge(self, served: Served) -> list[Job]:
        """Every preparing job that the judgement of a served model rests on."""
        model = served.model.name
        texts = [self.environment(self.converter.name), self.texts(model, EVALUATION), self.reference(model), *self.harness()]
        return [*texts, *self.prepared_to_serve(served)]

    def prepared_to_serve(self, served: Served) -> list[Job]:
        model, quantization, backend = served.model.name, served.quantization.name, served.backend.name
        made = [
            self.download(model),
            *self.quantizer(quantization),
            *self.samples(model, quantization),
            self.quantize(model, quantization),
            self.build(model, quantization, backend),
        ]
        return [*self.converter_of(model), self.environment_of(backend), *made]

    def adapter(self, backend: str) -> list[str]:
        """The files of one backend."""
        name = self.experiment.backends[backend].adapter
        files = [f"backends/{name}.py", f"servers/{name}_server.py"]
        return [file for file in files if (self.scripts / file).is_file()]

    def recheck(self) -> None:
        """See that old results still stand; what does not is made again, and a line says why.

        A cell is measured again if it failed for the machine rather than for its server (failure.RETRIED), or if its
        records are gone. What was prepared is made again if it failed or if its bytes are gone or changed, but only where
        a cell is to be measured with it. Old results stay until the new ones are there.
        """
        needed: dict[Path, Job] = {}
        for cell in self.experiment.cells():
            job = self.measure(cell.model.name, cell.quantization.name, cell.backend.name, cell.workload.name, cell.offered.name, cell.trial)
            old = json.loads(job.path.read_text()) if job.path.exists() else None
            reason = unfit(old, job.path) if old else None
            if reason:
                job.redo(reason)
            if reason or not job.settled:
                needed |= {made.path: made for made in self.prepared_for(cell)}
        for served in self.experiment.evaluated():
            job = self.probe(served.model.name, served.quantization.name, served.backend.name)
            failure = json.loads(job.path.read_text())["failure"] if job.path.exists() else None
            reason = failure["reason"] if failure and RETRIED[failure["kind"]] else None
            if reason:
                job.redo(reason)
            if reason or not job.settled:
                needed |= {made.path: made for made in self.prepared_to_judge(served)}
        for made in needed.values():
            if made.settled:
                manifest = Manifest.load(made.path)
                reason = manifest.failure["reason"] if manifest.failure else store.lost(manifest)
                if not reason and "runtime" in manifest.facts:
                    reason = runtime.load(manifest.facts["runtime"]).missing(manifest.facts)
                if reason:
                    made.redo(reason)


def unfit(cell: dict[str, Any], path: Path) -> str | None:
    """Why a measured cell does not stand, if it does not."""
    if cell["failure"]:
        return str(cell["failure"]["reason"]) if RETRIED[cell["failure"]["kind"]] else None
    records = path.with_name(cell["records"]["path"])
    if not records.is_file() or records.stat().st_size != cell["records"]["bytes"]:
        return "its records are gone or have another length"
    return None


def any_of(names: Iterable[str]) -> str:
    """A pattern for a wildcard that matches exactly these names."""
    return "|".join(sorted({re.escape(name) for name in names}))
