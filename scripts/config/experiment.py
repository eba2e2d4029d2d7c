"""A configuration, checked and typed: the axes of the matrix and its cells. No other file parses configuration."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import platform
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import backends
from config import checks, schema
from config.checks import PIPELINE, layout_of
from config.paths import ROOT, locate
from pipeline.artifact import sha256
from pipeline.failure import Failure
from pipeline.spec import (
    Backend,
    Calibration,
    Cell,
    Environment,
    Evaluation,
    Load,
    Model,
    Offered,
    Prompts,
    Quantization,
    Served,
    Server,
    Tasks,
    Weights,
    Workload,
)

# Checkpoints are converted and made in an environment that has torch and transformers; only these pins decide the result.
CONVERTER = "vllm"
CONVERTER_PINS = ("gguf", "safetensors", "tokenizers", "torch", "transformers")
SAMPLE = 1 << 20
# Asks what a revision means: kind ('model', 'dataset'), name, revision -> commit. config/pins.py gives one.
Pin = Callable[[str, str, str], str]
COMMIT = re.compile(r"[0-9a-f]{40}")
# The prompts of BentoML's study of 2024: nothing between context and instruction, 30 to 150 tokens (bentoml/llm-bench).
STUDY = {"columns": ["context", "instruction"], "join": "", "min_tokens": 30, "max_tokens": 150}


class ConfigError(Exception):
    """The configuration cannot be planned; the message names file, key and remedy."""


@dataclass(frozen=True)
class Experiment:
    """A whole configuration: the axes by name, and what all cells share. `served`: the quantizations of each backend;
    `offers`: those of each model, and its backends."""

    config: dict[str, Any]
    models: dict[str, Model]
    quantizations: dict[str, Quantization]
    backends: dict[str, Backend]
    workloads: dict[str, Workload]
    offered: dict[str, Offered]
    evaluation: Evaluation
    served: dict[str, list[str]]
    offers: dict[str, tuple[list[str], list[str]]]

    @property
    def results(self) -> str:
        return str(Path(self.config["results"]).expanduser())

    @property
    def server(self) -> Server:
        return Server(**self.config["server"])

    def cell(
        self,
        model: str,
        quantization: str,
        backend: str,
        workload: str,
        offered: str,
        trial: int | str,
    ) -> Cell:
        return Cell(
            model=self.models[model],
            quantization=self.quantizations[quantization],
            backend=self.backends[backend],
            workload=self.workloads[workload],
            offered=self.offered[offered],
            trial=int(trial),
            seed=self.config["seed"],
            load=Load(**self.config["load"]),
            server=self.server,
            isolation=self.config["isolation"],
        )

    def serving(self, model: str, quantization: str, backend: str) -> Served:
        return Served(
            self.models[model],
            self.quantizations[quantization],
            self.backends[backend],
            self.server,
            self.config["seed"],
        )

    def all_served(self) -> list[Served]:
        """Every model in every quantization behind every backend, but for what the configuration leaves out."""
        return [
            self.serving(model, quantization, backend)
            for model, backend in itertools.product(self.models, self.backends)
            for quantization in self.served[backend]
            if backend in self.offers[model][1] and quantization in self.offers[model][0]
        ]

    def loads(self) -> list[tuple[Workload, Offered]]:
        """Every load of every workload; a trace's speeds only with a trace."""
        return [
            (workload, offered)
            for workload, offered in itertools.product(
                self.workloads.values(), self.offered.values()
            )
            if offered.kind != "speed" or workload.prompts.source == "trace"
        ]

    def trials(self) -> range:
        return range(1, self.config["trials"] + 1)

    def evaluated(self) -> list[Served]:
        """Of what is served, all whose quality is judged: that of random weights means nothing."""
        if (
            self.evaluation.text is None
            and self.evaluation.prompts is None
            and self.evaluation.tasks is None
        ):
            return []
        return [served for served in self.all_served() if served.model.weights.source != "random"]

    def cells(self) -> Iterator[Cell]:
        """All cells of the matrix."""
        for trial, served, (workload, offered) in itertools.product(
            self.trials(), self.all_served(), self.loads()
        ):
            names = (served.model.name, served.quantization.name, served.backend.name)
            yield self.cell(*names, workload.name, offered.name, trial)


def load(
    config: dict[str, Any],
    file: str = "config.yaml",
    pin: Pin = lambda kind, name, revision: revision,
) -> Experiment:
    """Check a configuration and give its typed form; ConfigError with every problem, one a line.

    Fills the schema's defaults into `config`. Reads only small local files: lock files, prompt files, folders of models.
    `pin` is asked once for each revision that is not a commit, after all else has been checked; by default it stays as it is.
    """
    _fill_rules(config)
    problems = list(schema.problems(config))
    if not problems:
        problems = list(checks.problems(config))
    if problems:
        raise ConfigError("\n".join(f"{file}: {problem}" for problem in problems))
    names = [entry["name"] for entry in config["quantizations"]]
    # '@' stands in the names of environments alone, so that none is another's.
    try:
        models = {
            entry["name"]: _model(entry, pin, config["converter_python"])
            for entry in config["models"]
        }
        workloads = {entry["name"]: _workload(entry, pin) for entry in config["workloads"]}
        served_by = {entry["name"]: _backend(entry, pin) for entry in config["backends"]}
        quantizations = {
            entry["name"]: _quantization(entry, config["seed"], pin)
            for entry in config["quantizations"]
        }
        evaluation = _evaluation(config["evaluation"], pin)
    except Failure as error:
        raise ConfigError(f"{file}: {error}") from error
    experiment = Experiment(
        config=config,
        models=models,
        quantizations=quantizations,
        backends=served_by,
        workloads=workloads,
        offered={made.name: made for made in checks.offered(config)},
        evaluation=evaluation,
        served={entry["name"]: entry.get("quantizations", names) for entry in config["backends"]},
        offers={
            entry["name"]: (
                entry.get("quantizations", names),
                entry.get("backends", list(served_by)),
            )
            for entry in config["models"]
        },
    )
    if not experiment.all_served() or not experiment.loads():
        raise ConfigError(
            f"{file}: models: no model is served in any quantization by any backend; see `quantizations` and `backends` of the models and backends."
        )
    return experiment


def environment(name: str) -> Environment:
    """The environment that envs/<name>.txt locks, for this interpreter and machine; 'pipeline' is the pipeline's own."""
    python = f"{platform.python_implementation()} {platform.python_version()} {platform.machine()}"
    if name == PIPELINE:
        return Environment(name, "pipeline", python=python, interpreter=sys.executable)
    return Environment(
        name, "lock", python=python, lock=name, lock_sha256=sha256(ROOT / "envs" / f"{name}.txt")
    )


def folder_sha256(folder: Path) -> str:
    """Identity of a local folder without reading all of it: of each file the name, the size, and the first, middle and last MiB."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)}\0{size}\0".encode())
        with path.open("rb") as stream:
            for offset in sorted({0, max(0, size // 2 - SAMPLE // 2), max(0, size - SAMPLE)}):
                stream.seek(offset)
                digest.update(stream.read(SAMPLE))
    return digest.hexdigest()


def _fill_rules(config: dict[str, Any]) -> None:
    """Prompts by somebody's rules: what these say, where the configuration says nothing else."""
    workloads = config.get("workloads")
    for entry in workloads if isinstance(workloads, list) else []:
        prompts = entry.get("prompts") if isinstance(entry, dict) else None
        if isinstance(prompts, dict) and prompts.get("rules") == "study":
            prompts |= STUDY | prompts


def _commit(kind: str, entry: dict[str, Any], pin: Pin) -> str:
    revision: str = entry["revision"]
    return revision if COMMIT.fullmatch(revision) else pin(kind, entry["repo_id"], revision)


def _weights(entry: dict[str, Any], pin: Pin) -> Weights:
    fields = {
        name: value
        for name, value in entry.items()
        if name not in ("name", "licence", "note", "tokenizer", "quantizations", "backends")
    }
    if entry["source"] == "hub":
        fields |= {
            "revision": _commit("model", entry, pin),
            "pickle_weights": tuple(entry["pickle_weights"]),
        }
    if entry["source"] == "folder":
        fields |= {
            "path": str(locate(entry["path"])),
            "files_sha256": folder_sha256(locate(entry["path"])),
        }
    if entry["source"] == "random":
        fields["tokenizer"] = _weights(entry["tokenizer"], pin)
    return Weights(**fields)


def _model(entry: dict[str, Any], pin: Pin, converter: str | None) -> Model:
    weights = _weights(entry, pin)
    parts = [weights, *([weights.tokenizer] if weights.tokenizer else [])]
    made = any(part.source in ("package", "random") for part in parts)
    return Model(
        entry["name"],
        weights,
        (pins(CONVERTER, CONVERTER_PINS) if converter is None else {"interpreter": converter})
        if made
        else None,
    )


def pins(environment: str, packages: tuple[str, ...]) -> dict[str, str]:
    """Versions that a lock gives to some packages."""
    lock = (ROOT / "envs" / f"{environment}.txt").read_text()
    return {
        name: version
        for name, version in re.findall(r"^([\w.-]+)==(\S+)", lock, re.MULTILINE)
        if name in packages
    }


def _backend(entry: dict[str, Any], pin: Pin) -> Backend:
    name = entry.get("adapter", entry["name"])
    adapter = backends.load(name)
    options = adapter.Options(**entry["options"])
    runtime, args = entry["runtime"], tuple(entry["args"])
    return Backend(
        entry["name"],
        name,
        _surroundings(entry, adapter, pin),
        dataclasses.asdict(options),
        args,
        runtime,
        entry["env"],
        entry.get("workdir"),
        entry.get("user"),
        adapter.builds(options),
    )


def _surroundings(entry: dict[str, Any], adapter: backends.Adapter, pin: Pin) -> Environment:
    """What a backend runs in; _backend_problems has seen that there is something."""
    if "python" in entry:
        return Environment(
            f"{entry['name']}@backend",
            "interpreter",
            interpreter=str(Path(entry["python"]).expanduser()),
            env=entry["env"],
        )
    if entry["runtime"] == "process":
        assert adapter.ENVIRONMENT
        return environment(adapter.ENVIRONMENT)
    image = entry.get("image") or adapter.IMAGE
    if image:
        return Environment(
            f"{entry['name']}@image",
            "image",
            runtime=entry["runtime"],
            image=pinned_image(image, pin),
        )
    return Environment(
        f"{entry['name']}@image",
        "container",
        runtime=entry["runtime"],
        image=f"{adapter.CONTAINER}",
        lock=adapter.ENVIRONMENT,
        lock_sha256=environment(adapter.ENVIRONMENT).lock_sha256 if adapter.ENVIRONMENT else None,
        sources_sha256=folder_sha256(ROOT / "containers" / str(adapter.CONTAINER)),
        build_args=entry["build_args"],
    )


def pinned_image(image: str, pin: Pin) -> str:
    """The image by digest, name@sha256:..., whatever tag it was named by; by its id where no registry has it."""
    if "@sha256:" in image:
        return image
    name, _, tag = (
        image.rpartition(":") if ":" in image.rsplit("/", 1)[-1] else (image, "", "latest")
    )
    digest = pin("image", name, tag)
    if digest.startswith("id:"):
        return digest.removeprefix("id:")
    return f"{name}@{digest}" if digest.startswith("sha256:") else f"{name}:{digest}"


def _quantization(entry: dict[str, Any], seed: int, pin: Pin) -> Quantization:
    fields = {name: value for name, value in entry.items() if name != "python"}
    method = checks.method_of(entry)
    if method:
        fields["layout"] = layout_of(entry)
    if method and method.calibrated:
        asked = entry["calibration"]
        fields["calibration"] = Calibration(
            _prompts(asked["prompts"], pin), asked["samples"], asked["sequence_length"]
        )
        fields.setdefault("seed", seed)
    if method and method.environment:
        python = entry.get("python")
        own = (
            Environment(
                f"{entry['name']}@quantization",
                "interpreter",
                interpreter=str(Path(python).expanduser()),
                env=entry["env"],
            )
            if python
            else environment(method.environment)
        )
        fields["environment"] = own
    return Quantization(**fields)


def _evaluation(entry: dict[str, Any], pin: Pin) -> Evaluation:
    text, prompts = (
        _prompts(entry[name], pin) if entry[name] else None for name in ("text", "prompts")
    )
    tasks = entry.get("tasks")
    if tasks:
        folder = (
            {
                "path": str(locate(tasks["path"])),
                "files_sha256": folder_sha256(locate(tasks["path"])),
            }
            if tasks["path"]
            else {}
        )
        tasks = Tasks(tuple(tasks["names"]), tasks["limit"], tasks["shots"], **folder)
    return Evaluation(text, prompts, entry["answer_tokens"], tasks)


def _workload(entry: dict[str, Any], pin: Pin) -> Workload:
    return Workload(**{**entry, "prompts": _prompts(entry["prompts"], pin)})


def _prompts(entry: dict[str, Any], pin: Pin) -> Prompts:
    fields = {name: value for name, value in entry.items() if name != "rules"}
    if fields["source"] == "hub":
        fields["revision"] = _commit("dataset", fields, pin)
    fields["columns"] = tuple(fields["columns"])
    if fields["source"] in ("file", "trace"):
        fields["sha256"] = sha256(locate(fields["path"]))
    if fields["source"] == "trace":
        fields["corpus_sha256"] = sha256(ROOT / "prompts" / "showdown.jsonl")
    return Prompts(**fields)
