"""The jobs of an experiment, each stated once: what it is made from, by which code, from which other jobs.

A job's key hashes its specification and its code, and goes into the specifications of the jobs that use what it makes. So
a change anywhere reaches all that depends on it, and nothing else. A result's file carries the key in its name
(pipeline/results.py): Snakemake makes what is not there, and needs no reason of its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import backends
import quantizers
import runtime
from config.experiment import CONVERTER, Experiment, environment
from config.paths import locate
from host.gpus import gpu_kind
from host.machine import describe_host
from pipeline import fingerprint, results, store
from pipeline.artifact import Manifest, Unreadable, read_json, write_json
from pipeline.spec import Environment, Offered, Served, Workload, to_json

# Every stage, in the order of the pipeline, and the names of its jobs: what their paths are made of.
STAGES = {
    "environment": "{environment}",
    "download": "{model}",
    "prompts": "{model}/{workload}",
    "texts": "{model}/{use}",
    "quantize": "{model}/{quantization}",
    "build": "{model}/{quantization}/{backend}",
    "reference": "{model}",
    "calibrate": "client",
    "measure": "{model}/{quantization}/{backend}/t{trial}",
    "summarize": "{model}/{quantization}/{backend}/t{trial}",
    "assess": "{model}/{quantization}/{backend}",
    "report": "page",
}
# Stages whose result is the file itself; the others' bytes lie in the store, and their file is its manifest.
RESULTS = ("calibrate", "measure", "summarize", "assess", "report")
# Which code counts: of what a stage's command imports, the files in these folders of scripts/. What lies elsewhere reruns
# nothing: config, pipeline, models, host. Cells and questions are the two things that `measure` makes.
COUNTS = {
    "prompts": ("data",),
    "texts": ("data",),
    "quantize": ("quantizers",),
    "build": ("backends",),
    "reference": (),
    "calibrate": ("loadgen", "metrics"),
    "cells": ("backends", "runtime", "loadgen"),
    "questions": ("questions", "backends", "runtime", "loadgen"),
    "summarize": ("metrics", "loadgen"),
    "assess": ("metrics",),
    "report": ("comparison", "metrics"),
}
PAGE = ("report.html.j2", "report.md.j2", "style.css", "charts.py", "view.py")
# The uses of a model's texts: to judge it by, and to calibrate a quantization with.
EVALUATION, CALIBRATION = "evaluation", "calibration-"
# The environment of lm-evaluation-harness.
HARNESS = "lm_eval"
# What of the server's settings an engine is built for.
BUILT_FOR = ("context_length", "max_sequences", "dtype", "tensor_parallel")


@dataclass(frozen=True, eq=False)
class Job:
    """One job: `name` is its part of every path, `spec` sorted JSON, `code` a fingerprint; `inputs` are the jobs whose results
    it reads, `files` the local files, both by name."""

    stage: str
    name: str
    spec: str
    code: str
    inputs: dict[str, list[Job]]
    files: dict[str, str]

    @cached_property
    def key(self) -> str:
        return store.key(json.loads(self.spec), self.code)

    def walk(self) -> Iterator[Job]:
        """This job and all that it rests on, each once, what is needed first."""
        seen: set[Job] = set()

        def visit(job: Job) -> Iterator[Job]:
            if job in seen:
                return
            seen.add(job)
            for needed in job.inputs.values():
                for one in needed:
                    yield from visit(one)
            yield job

        return visit(self)


class Plan:
    """The jobs of an experiment, by stage and name, and the file that each writes.

    `again`: whether a result that does not stand is to be made again under a new name; where a single job runs on a
    cluster's node, that has been decided before.
    """

    def __init__(
        self,
        experiment: Experiment,
        scripts: Path,
        config_files: list[str] | None = None,
        again: bool = True,
    ):
        self.experiment, self.scripts, self.again = experiment, scripts, again
        self.config_files = config_files or ["config.yaml"]
        self.folder = Path(experiment.results)
        self.converter = converter_of(experiment)
        self.jobs = {(job.stage, job.name): job for job in self.report().walk()}
        self.files = self.settle()

    # What is made from what.

    def job(
        self,
        stage: str,
        names: dict[str, str],
        spec: Any,
        code: str,
        inputs: Mapping[str, Job | list[Job] | None],
        files: dict[str, str | None] | None = None,
    ) -> Job:
        """A job by the names that its path is made of. What it lacks is left out of its inputs and files."""
        needed = {
            name: value if isinstance(value, list) else [value]
            for name, value in inputs.items()
            if value is not None
        }
        local = {name: str(locate(path)) for name, path in (files or {}).items() if path}
        return Job(
            stage, STAGES[stage].format(**names), to_json(without_places(spec)), code, needed, local
        )

    @cache
    def code(self, counts: str, *files: str) -> str:
        return fingerprint.code(self.scripts, files, COUNTS[counts])

    @cache
    def environment(self, name: str) -> Job:
        """A lock and a digest fix every byte, so no code counts."""
        return self.job("environment", {"environment": name}, self.environments[name], "", {})

    @cached_property
    def environments(self) -> dict[str, Environment]:
        """All environments that the experiment may need, by name."""
        used = [backend.environment for backend in self.experiment.backends.values()]
        if (
            any(model.converter for model in self.experiment.models.values())
            or self.experiment.evaluated()
        ):
            used.append(self.converter)
        used += [
            made.environment for made in self.experiment.quantizations.values() if made.environment
        ]
        if self.experiment.evaluation.tasks and self.experiment.evaluated():
            used.append(environment(HARNESS))
        return {made.name: made for made in used}

    @cache
    def download(self, model: str) -> Job:
        """Hashes fix what is fetched; only a program of ours that converts or makes weights counts."""
        made = self.experiment.models[model]
        programs = {"package": ["foreign/from_gguf.py"], "random": ["foreign/random_weights.py"]}
        sources = [part.source for part in (made.weights, made.weights.tokenizer) if part]
        files = sorted({file for source in sources for file in programs.get(source, [])})
        code = fingerprint.code(self.scripts, tuple(files), ()) if files else ""
        spec = {"weights": made.weights, "converter": made.converter}
        converter = self.environment(self.converter.name) if made.converter else None
        folder = made.weights.path or (
            made.weights.tokenizer.path if made.weights.tokenizer else None
        )
        return self.job(
            "download", {"model": model}, spec, code, {"environment": converter}, {"folder": folder}
        )

    @cache
    def prompts(self, model: str, workload: str) -> Job:
        prompts, needed = self.experiment.workloads[workload].prompts, self.download(model)
        spec = {"model": needed.key, "prompts": prompts, "seed": self.experiment.config["seed"]}
        names, code = {"model": model, "workload": workload}, self.code("prompts", "prompts.py")
        return self.job("prompts", names, spec, code, {"model": needed}, {"source": prompts.path})

    @cache
    def texts(self, model: str, use: str) -> Job:
        """The texts of a model for one use: evaluation, or calibration-<quantization>."""
        needed, evaluation = self.download(model), self.experiment.evaluation
        if use == EVALUATION:
            asked = {"text": evaluation.text, "prompts": evaluation.prompts}
            spec = asked | {"seed": self.experiment.config["seed"]}
        else:
            made = self.experiment.quantizations[use.removeprefix(CALIBRATION)]
            assert made.calibration
            asked = {"text": made.calibration.prompts}
            spec = {"calibration": made.calibration, "seed": made.seed}
        spec = {name: value for name, value in spec.items() if value is not None} | {
            "model": needed.key
        }
        names, files = (
            {"model": model, "use": use},
            {name: prompts.path for name, prompts in asked.items() if prompts},
        )
        return self.job(
            "texts", names, spec, self.code("texts", "texts.py"), {"model": needed}, files
        )

    @cache
    def quantize(self, model: str, quantization: str) -> Job:
        made, needed = self.experiment.quantizations[quantization], self.download(model)
        samples = self.texts(model, f"{CALIBRATION}{quantization}") if made.calibration else None
        own = self.environment(made.environment.name) if made.environment else None
        spec = {"model": needed.key, "quantization": dataclasses.replace(made, calibration=None)}
        spec |= {"samples": samples.key if samples else None}
        names = {"model": model, "quantization": quantization}
        inputs = {"model": needed, "samples": samples, "environment": own}
        return self.job("quantize", names, spec, self.quantizing_code(made.method), inputs)

    def quantizing_code(self, method: str) -> str:
        """Weights that are passed on as they were downloaded are nobody's work."""
        if method not in quantizers.names():
            return ""
        program = quantizers.load(method).program
        return self.code(
            "quantize",
            "quantize.py",
            f"quantizers/{method}.py",
            *([f"foreign/{program}"] if program else []),
        )

    @cache
    def build(self, model: str, quantization: str, backend: str) -> Job:
        """Where there is something to build, all that the engine is made for: sizes, and the GPU by name and capability."""
        made, server = self.experiment.backends[backend], self.experiment.server
        weights, own = self.quantize(model, quantization), self.environment(made.environment.name)
        spec: dict[str, Any] = {"weights": weights.key, "backend": made}
        # Of a backend that builds nothing only its own file says which weights it loads.
        code = fingerprint.code(self.scripts, (f"backends/{made.adapter}.py",), ())
        if made.builds:
            spec["quantization"] = self.experiment.quantizations[quantization]
            spec |= {
                "server": {name: getattr(server, name) for name in BUILT_FOR},
                "gpu": gpu_kind(),
            }
            spec["trust_remote_code"] = self.experiment.models[model].weights.trust_remote_code
            programs = backends.programs_of_build(made.adapter)
            code = self.code("build", "build.py", f"backends/{made.adapter}.py", *programs)
        names = {"model": model, "quantization": quantization, "backend": backend}
        return self.job("build", names, spec, code, {"weights": weights, "environment": own})

    @cache
    def calibrate(self) -> Job:
        """The client's own error and ceiling, on this kind of host."""
        host = {name: describe_host()[name] for name in ("cpu", "cores")}
        spec = {"calibration": self.experiment.config["calibration"], "host": host}
        code = self.code("calibrate", "calibrate.py", "loadgen/null_server.py", "loadgen/worker.py")
        return self.job("calibrate", {}, spec, code, {})

    @cache
    def reference(self, model: str) -> Job:
        made = self.experiment.models[model]
        needed, texts = self.download(model), self.texts(model, EVALUATION)
        spec = {"model": needed.key, "texts": texts.key, "environment": self.converter}
        spec |= {"answer_tokens": self.experiment.evaluation.answer_tokens}
        spec |= {"trust_remote_code": made.weights.trust_remote_code}
        code = self.code("reference", "reference.py", "foreign/reference_answers.py")
        inputs = {
            "model": needed,
            "texts": texts,
            "environment": self.environment(self.converter.name),
        }
        return self.job("reference", {"model": model}, spec, code, inputs)

    @cache
    def measure(self, model: str, quantization: str, backend: str, trial: int) -> Job:
        """One session: its cells in the order in which they are measured, and in trial 1 the quality questions."""
        experiment, engine = self.experiment, self.build(model, quantization, backend)
        served = experiment.serving(model, quantization, backend)
        prompts = {workload: self.prompts(model, workload) for workload in experiment.workloads}
        asked = self.questions(model, quantization, backend) if trial == 1 else None
        spec = {
            "served": served,
            "trial": trial,
            "load": experiment.config["load"],
            "isolation": experiment.config["isolation"],
            "engine": engine.key,
            "workloads": {
                workload.name: {"workload": workload, "prompts": prompts[workload.name].key}
                for workload, _ in experiment.loads()
            },
            "cells": [
                {
                    "workload": workload.name,
                    "offered": offered,
                    "key": self.cell_key(served, trial, workload, offered),
                }
                for workload, offered in self.order(served, trial)
            ],
            "questions": asked,
        }
        inputs: dict[str, Any] = {
            f"prompts of {workload}": job for workload, job in prompts.items()
        }
        inputs |= {
            "engine": engine,
            "environment": self.environment(served.backend.environment.name),
        }
        if asked:
            inputs |= {"texts": self.texts(model, EVALUATION), "model": self.download(model)}
            inputs |= {"harness": self.environment(HARNESS)} if experiment.evaluation.tasks else {}
        names = {
            "model": model,
            "quantization": quantization,
            "backend": backend,
            "trial": str(trial),
        }
        tasks = experiment.evaluation.tasks if asked else None
        return self.job(
            "measure",
            names,
            spec,
            self.cell_code(backend),
            inputs,
            {"tasks": tasks.path if tasks else None},
        )

    def order(self, served: Served, trial: int) -> list[tuple[Workload, Offered]]:
        """The loads of a session in an order drawn from the seed and what is served: anew for every odd trial, and backwards
        in the one after it, so that no load is always first and none always follows another."""

        def drawn(load: tuple[Workload, Offered]) -> str:
            pair = (trial + 1) // 2
            return draw(
                self.experiment.config["seed"], pair, served.path, load[0].name, load[1].name
            )

        return sorted(self.experiment.loads(), key=drawn, reverse=trial % 2 == 0)

    def cell_key(self, served: Served, trial: int, workload: Workload, offered: Offered) -> str:
        """Hashes of the large parts in place of the parts: there may be ten thousand cells."""
        names = (served.model.name, served.quantization.name, served.backend.name)
        spec = {
            "served": self.identity(served.path, served),
            "workload": self.identity(workload.name, workload),
            "load": self.identity("load", self.experiment.config["load"]),
            "isolation": self.experiment.config["isolation"],
            "engine": self.build(*names).key,
            "prompts": self.prompts(served.model.name, workload.name).key,
            "offered": [offered.kind, offered.value],
            "trial": trial,
        }
        return store.key(spec, self.cell_code(served.backend.name))

    @cached_property
    def identities(self) -> dict[tuple[str, str], str]:
        return {}

    def identity(self, name: str, value: Any) -> str:
        """The hash of a part of a specification, worked out once."""
        place = (type(value).__name__, name)
        if place not in self.identities:
            self.identities[place] = hashlib.sha256(
                to_json(without_places(value)).encode()
            ).hexdigest()
        return self.identities[place]

    @cache
    def cell_code(self, backend: str) -> str:
        return self.code("cells", "measure.py", *self.serving_code(backend))

    def serving_code(self, backend: str) -> list[str]:
        """The files that start and speak to one backend's server, which are found by name."""
        made = self.experiment.backends[backend]
        files = [f"backends/{made.adapter}.py", f"foreign/{made.adapter}_server.py"]
        helpers = {"process": ["supervise.py"], "apptainer": ["supervise.py"]}.get(
            made.runtime, ["guard.py"]
        )
        files += [f"runtime/{name}" for name in (f"{runtime.file_of(made.runtime)}.py", *helpers)]
        return [*(file for file in files if (self.scripts / file).is_file()), "loadgen/worker.py"]

    @cache
    def questions(self, model: str, quantization: str, backend: str) -> dict[str, Any] | None:
        """What a served model is asked, with its key; None where its quality is not judged."""
        experiment, served = self.experiment, self.experiment.serving(model, quantization, backend)
        if served.path not in self.judged:
            return None
        code = self.code(
            "questions", "questions/ask.py", "questions/tasks.py", *self.serving_code(backend)[:-1]
        )
        spec = {
            "engine": self.build(model, quantization, backend).key,
            "texts": self.texts(model, EVALUATION).key,
            "answer_tokens": experiment.evaluation.answer_tokens,
            "tasks": without_places(experiment.evaluation.tasks),
        }
        return spec | {
            "key": store.key(spec | {"served": self.identity(served.path, served)}, code)
        }

    @cached_property
    def judged(self) -> frozenset[str]:
        return frozenset(served.path for served in self.experiment.evaluated())

    @cache
    def summarize(self, model: str, quantization: str, backend: str, trial: int) -> Job:
        session = self.measure(model, quantization, backend, trial)
        spec = {
            "session": session.key,
            "slo": self.experiment.config["slo"],
            "cells": self.summary_keys(session),
        }
        names = {
            "model": model,
            "quantization": quantization,
            "backend": backend,
            "trial": str(trial),
        }
        inputs = {
            "session": session,
            "model": self.download(model),
            "calibration": self.calibrate(),
        }
        return self.job("summarize", names, spec, self.code("summarize", "summarize.py"), inputs)

    def summary_keys(self, session: Job) -> dict[str, dict[str, str]]:
        """Of each cell of a session its key and that of its summary, by its place in the session's folder."""
        code, found = self.code("summarize", "summarize.py"), {}
        for entry in json.loads(session.spec)["cells"]:
            offered = Offered(**entry["offered"])
            spec = {
                "cell": entry["key"],
                "slo": self.experiment.config["slo"],
                "calibration": self.calibrate().key,
            }
            found[f"{entry['workload']}/{offered.name}"] = {
                "cell": entry["key"],
                "summary": store.key(spec, code),
            }
        return found

    @cache
    def assess(self, model: str, quantization: str, backend: str) -> Job:
        session, reference = self.measure(model, quantization, backend, 1), self.reference(model)
        asked = self.questions(model, quantization, backend)
        assert asked
        spec = {"questions": asked["key"], "reference": reference.key}
        names = {"model": model, "quantization": quantization, "backend": backend}
        inputs = {"session": session, "reference": reference, "model": self.download(model)}
        return self.job("assess", names, spec, self.code("assess", "assess.py"), inputs)

    @cache
    def report(self) -> Job:
        """The page; its specification holds the key of everything that it may show."""
        names = [
            (one.model.name, one.quantization.name, one.backend.name)
            for one in self.experiment.all_served()
        ]
        summaries = [
            self.summarize(*name, trial) for trial in self.experiment.trials() for name in names
        ]
        qualities = [self.assess(*name) for name in names if "/".join(name) in self.judged]
        spec = {
            "config": self.experiment.config,
            "config_files": self.config_files,
            "summaries": {job.name: json.loads(job.spec)["cells"] for job in summaries},
            "sessions": {job.name: job.inputs["session"][0].key for job in summaries},
            "qualities": {job.name: job.key for job in qualities},
        }
        code = self.code("report", "report.py", *(f"../report/{name}" for name in PAGE))
        inputs = {"summaries": summaries, "qualities": qualities, "calibration": [self.calibrate()]}
        return self.job("report", {}, spec, code, inputs)

    # Which file each writes, and what stands.

    def settle(self) -> dict[Job, Path]:
        """The file of each job: of one whose result stands that result's, else of a new attempt at it.

        A job that only prepares is made again where its bytes are lost or its making had failed, but only if a result that
        does not stand needs it.
        """
        standing: dict[Job, str | None] = {}
        files: dict[Job, Path] = {}
        for job in self.jobs.values():
            if job.stage in RESULTS:
                standing[job] = self.read(job, standing)
                files[job] = self.file(job, again=standing[job] is None)
        pending = [
            one for job, stands in standing.items() if stands is None for one in inputs_of(job)
        ]
        while pending:
            job = pending.pop()
            if job not in files:
                reason = self.unsound(job)
                files[job] = self.file(job, again=reason is not None)
                pending += inputs_of(job) if reason is not None else []
        for job in self.jobs.values():
            if job not in files:
                files[job] = self.file(job, again=False)
        return files

    def file(self, job: Job, again: bool) -> Path:
        folder = self.folder / job.stage / job.name
        newest = results.attempts(folder, job.key)
        return folder / results.name(
            job.key, newest + 1 if again and self.again else max(newest, 1)
        )

    def read(self, job: Job, standing: dict[Job, str | None]) -> str | None:
        """The hash of a result that stands: it is whole, and was made of those of its inputs that stand; else None."""
        newest = self.file(job, again=False)
        if not newest.exists():
            return None
        try:
            result, digest = results.read(newest, job.key)
        except Unreadable as error:
            tell(f"{newest}: will be made again: {error}")
            return None
        if result.get("retry"):
            tell(f"{newest}: will be made again: {result['retry']}")
            return None
        for one in inputs_of(job):
            if one.stage not in RESULTS:
                continue
            made_of = result.get("made_of", {}).get(str(self.folder / one.stage / one.name))
            if standing[one] is None or made_of != self.digest(job, one, standing):
                return None
        return digest

    def digest(self, job: Job, needed: Job, standing: dict[Job, str | None]) -> str | None:
        """What a result must have been made of: the whole result that it reads, or of a session the answers alone."""
        if job.stage != "assess":
            return standing[needed]
        parts = read_json(self.file(needed, again=False))["parts"]
        return str(parts["quality.json"]["sha256"])

    def unsound(self, job: Job) -> str | None:
        """Why a prepared artefact has to be made again; None if it is as it was made."""
        newest = self.file(job, again=False)
        if not newest.exists():
            return "it is not there"
        try:
            manifest = Manifest.load(newest)
            reason = manifest.failure["reason"] if manifest.failure else store.lost(manifest)
            if manifest.key != job.key:
                reason = "it says that it belongs to another key"
            if not reason and "runtime" in manifest.facts:
                reason = runtime.load(manifest.facts["runtime"]).missing(manifest.facts)
        except Unreadable as error:
            reason = str(error)
        if reason:
            tell(f"{newest}: will be made again: {reason}")
        return reason

    # What Snakemake asks.

    def write_specs(self) -> None:
        """Write the task of every job for its command to read, and remove those of other plans."""
        files = {self.spec_file(job): job for job in self.jobs.values()}
        for path in (self.folder / "specs").rglob("*.json"):
            if path not in files:
                path.unlink()
        for path, job in files.items():
            write_json(path, self.task(job))

    def spec_file(self, job: Job) -> Path:
        return self.folder / "specs" / job.stage / job.name / f"{self.files[job].stem}.json"

    def task(self, job: Job) -> dict[str, Any]:
        inputs = {
            name: [str(self.files[one]) for one in needed] for name, needed in job.inputs.items()
        }
        if job.stage == "report":
            inputs["prepared"] = [
                str(self.files[one]) for one in self.jobs.values() if one.stage not in RESULTS
            ]
            inputs["sessions"] = [
                str(self.files[one]) for one in self.jobs.values() if one.stage == "measure"
            ]
        local = {name: [path] for name, path in job.files.items()}
        return {"spec": json.loads(job.spec), "code": job.code, "inputs": inputs | local}

    @property
    def uses(self) -> list[str]:
        """Every use of texts, as the wildcard `use` has it."""
        calibrated = [
            made.name for made in self.experiment.quantizations.values() if made.calibration
        ]
        return [EVALUATION, *(f"{CALIBRATION}{name}" for name in calibrated)]

    @property
    def on_gpu(self) -> bool:
        return self.experiment.server.device == "gpu"

    def quantizes(self, quantization: str) -> bool:
        """Whether a program of its own does it, which takes the whole machine."""
        return self.experiment.quantizations[quantization].environment is not None

    def priority(self, stage: str, name: str) -> int:
        """What is prepared comes first, then the sessions of trial 1 in a drawn order, those of trial 2, and so on; last what is
        worked out from them."""
        if stage in ("summarize", "assess", "report"):
            return 0
        if stage != "measure":
            return 2**31
        trial = int(name.rpartition("/t")[2])
        rank = int(draw(self.experiment.config["seed"], trial, name.rpartition("/t")[0])[:4], 16)
        return 2**30 - trial * 2**16 - rank


def inputs_of(job: Job) -> Iterator[Job]:
    for needed in job.inputs.values():
        yield from needed


def draw(*of: Any) -> str:
    """A number drawn from these values, as hexadecimal digits: the same for the same, and of no order."""
    return hashlib.sha256("\0".join(map(str, of)).encode()).hexdigest()


def tell(line: str) -> None:
    print(line, file=sys.stderr)


def converter_of(experiment: Experiment) -> Environment:
    """What converts and makes checkpoints."""
    python = experiment.config["converter_python"]
    if python:
        return Environment("python@converter", "interpreter", interpreter=python)
    return environment(CONVERTER)


def without_places(value: Any) -> Any:
    """A specification without where local files and folders lie: it holds their hashes, and they may be moved."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {entry.name: getattr(value, entry.name) for entry in dataclasses.fields(value)}
        return {
            name: without_places(entry)
            for name, entry in fields.items()
            if name != "path" and entry is not None
        }
    if isinstance(value, dict):
        return {name: without_places(entry) for name, entry in value.items()}
    return [without_places(entry) for entry in value] if isinstance(value, tuple | list) else value


def any_of(names: Iterable[str]) -> str:
    """A pattern for a wildcard that matches exactly these names."""
    return "|".join(sorted({re.escape(name) for name in names})) or "(?!)"
