"""A configuration, checked and typed: the axes of the matrix and its cells. No other file parses configuration."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import itertools
import platform
import re
import sys
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

import backends
from failure import Failure
from manifest import sha256
from methods import METHODS
from spec import Backend, Calibration, Cell, Environment, Evaluation, Load, Model, Offered, Prompts, Quantization, Served, Server, Tasks, Weights, Workload

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = ROOT / "rules" / "config.schema.yaml"
# Checkpoints are converted and made in an environment that has torch and transformers; only these pins decide the result.
CONVERTER = "vllm"
PIPELINE = "pipeline"
CONVERTER_PINS = ("gguf", "safetensors", "tokenizers", "torch", "transformers")
SAMPLE = 1 << 20
# Asks what a revision means: kind ('model', 'dataset'), name, revision -> commit. scripts/lock.py gives one.
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
        return str(self.config["results"]).rstrip("/")

    @property
    def server(self) -> Server:
        return Server(**self.config["server"])

    def cell(self, model: str, quantization: str, backend: str, workload: str, offered: str, trial: int | str) -> Cell:
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
        )

    def serving(self, model: str, quantization: str, backend: str) -> Served:
        return Served(self.models[model], self.quantizations[quantization], self.backends[backend], self.server, self.config["seed"])

    def evaluated(self) -> list[Served]:
        """Of what is served, all whose quality is judged: that of random weights means nothing."""
        if self.evaluation.text is None and self.evaluation.prompts is None and self.evaluation.tasks is None:
            return []
        found = {cell.served.path: cell.served for cell in self.cells()}
        return [served for served in found.values() if served.model.weights.source != "random"]

    def cells(self) -> Iterator[Cell]:
        """All cells of the matrix; a backend's and a model's only in the quantizations they are to be served in, a trace's speeds only with a trace."""
        trials = range(1, self.config["trials"] + 1)
        for trial, model, backend, workload, offered in itertools.product(trials, self.models, self.backends, self.workloads, self.offered):
            if self.offered[offered].kind == "speed" and self.workloads[workload].prompts.source != "trace":
                continue
            quantizations, able = self.offers[model]
            for quantization in self.served[backend] if backend in able else []:
                if quantization not in quantizations:
                    continue
                yield self.cell(model, quantization, backend, workload, offered, trial)


def load(config: dict[str, Any], file: str = "config.yaml", pin: Pin = lambda kind, name, revision: revision) -> Experiment:
    """Check a configuration and give its typed form; ConfigError with every problem, one a line.

    Fills the schema's defaults into `config`. Reads only small local files: lock files, prompt files, folders of models.
    `pin` is asked once for each revision that is not a commit, after all else has been checked; by default it stays as it is.
    """
    _fill_rules(config)
    problems = list(_schema_problems(config))
    if not problems:
        problems = list(_problems(config))
    if problems:
        raise ConfigError("\n".join(f"{file}: {problem}" for problem in problems))
    names = [entry["name"] for entry in config["quantizations"]]
    try:
        models = {entry["name"]: _model(entry, pin, config["converter_python"]) for entry in config["models"]}
        workloads = {entry["name"]: _workload(entry, pin) for entry in config["workloads"]}
        served_by = {entry["name"]: _backend(entry, pin) for entry in config["backends"]}
        quantizations = {entry["name"]: _quantization(entry, config["seed"], pin) for entry in config["quantizations"]}
        evaluation = _evaluation(config["evaluation"], pin)
    except Failure as error:
        raise ConfigError(f"{file}: {error}") from error
    return Experiment(
        config=config,
        models=models,
        quantizations=quantizations,
        backends=served_by,
        workloads=workloads,
        offered={made.name: made for made in _offered(config)},
        evaluation=evaluation,
        served={entry["name"]: entry.get("quantizations", names) for entry in config["backends"]},
        offers={entry["name"]: (entry.get("quantizations", names), entry.get("backends", list(served_by))) for entry in config["models"]},
    )


def _filling(check: Any) -> Any:
    """A validator of `properties` that first fills in their defaults."""

    def properties(validator: Any, values: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        if isinstance(instance, dict):
            for name, entry in values.items():
                if isinstance(entry, dict) and "default" in entry:
                    instance.setdefault(name, entry["default"])
        yield from check(validator, values, instance, schema)

    return properties


def _schema_problems(config: dict[str, Any]) -> Iterator[str]:
    schema = yaml.safe_load(SCHEMA.read_text())
    validator = extend(  # type: ignore[no-untyped-call]
        Draft202012Validator, {"properties": _filling(Draft202012Validator.VALIDATORS["properties"])}
    )(schema)
    for error in sorted(validator.iter_errors(config), key=lambda e: str(e.json_path)):
        yield _explain(error, schema)


def _explain(error: ValidationError, schema: Any) -> str:
    """One line for one schema violation: the key, what is wrong, what would be right."""
    if error.validator == "anyOf" and error.context:  # this or null: what is wrong with it as this
        return _explain(min((inner for inner in error.context if inner.schema_path[0] == 0), key=lambda inner: inner.validator == "unevaluatedProperties"), schema)
    key = error.json_path.removeprefix("$").removeprefix(".") or "(top level)"
    assert isinstance(error.schema, dict)
    if error.validator in ("additionalProperties", "unevaluatedProperties"):
        assert isinstance(error.instance, dict)
        known = _known_keys(error.schema, error.instance, schema)
        unknown = [name for name in error.instance if name not in known]
        guesses = difflib.get_close_matches(unknown[0], known, 1) if unknown else []
        hint = f"did you mean '{guesses[0]}'?" if guesses else f"known keys here: {', '.join(sorted(known))}."
        return f"{key}: unknown key {', '.join(map(repr, unknown))}; {hint}"
    described = error.schema.get("description")
    return f"{key}: {error.message}" + (f" ({described})" if described else "")


def _known_keys(part: dict[str, Any], instance: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """Keys that a part of the schema allows for this instance, through $ref, allOf and if/then."""
    known = list(part.get("properties", {}))
    if "$ref" in part:
        target: Any = schema
        for step in part["$ref"].removeprefix("#/").split("/"):
            target = target[step]
        known += _known_keys(target, instance, schema)
    for branch in [*part.get("allOf", []), part]:
        if "if" in branch and Draft202012Validator(branch["if"]).is_valid(instance):
            known += _known_keys(branch["then"], instance, schema)
    return known


def _problems(config: dict[str, Any]) -> Iterator[str]:
    """What the schema cannot say: names used twice, names of nothing, files that are not there, pairs that cannot be."""
    for axis in ("models", "quantizations", "backends", "workloads"):
        names = [entry["name"] for entry in config[axis]]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"{axis}: the name '{name}' stands {names.count(name)} times; give each entry a name of its own."
    if not list(_offered(config)):
        yield "concurrencies: no load is offered; name numbers of users here, requests a second in rates, or speeds of a trace in speeds."
    if config["speeds"] and not any(entry["prompts"]["source"] == "trace" for entry in config["workloads"]):
        yield "speeds: no workload replays a trace; give one `prompts: {source: trace, ...}`, or drop speeds."
    if config["load"]["burstiness"] != 1 and config["load"]["arrivals"] != "gamma":
        yield f"load.burstiness: only arrivals: gamma can be bursty, not {config['load']['arrivals']}."
    if max(config["concurrencies"], default=0) > config["server"]["max_sequences"]:
        yield (
            f"server.max_sequences: {config['server']['max_sequences']} is less than the largest of concurrencies,"
            f" {max(config['concurrencies'])}: the server would queue what the load offers. Raise it."
        )
    for position, entry in enumerate(config["models"]):
        yield from _weights_problems(f"models[{position}]", entry)
        for axis in ("quantizations", "backends"):
            there = [other["name"] for other in config[axis]]
            yield from (f"models[{position}].{axis}: there is none called '{name}'; there are: {', '.join(there)}." for name in entry.get(axis, []) if name not in there)
    for position, entry in enumerate(config["workloads"]):
        yield from _prompts_problems(f"workloads[{position}].prompts", entry["prompts"])
    for position, entry in enumerate(config["quantizations"]):
        yield from _quantization_problems(f"quantizations[{position}]", entry)
    for position, entry in enumerate(config["backends"]):
        yield from _backend_problems(f"backends[{position}]", entry, config)
    for name in ("text", "prompts"):
        if config["evaluation"][name]:
            yield from _fixed_texts_problems(f"evaluation.{name}", config["evaluation"][name])
    tasks = config["evaluation"].get("tasks")
    if tasks and tasks["path"] and not list(locate(tasks["path"]).glob("*.yaml")):
        yield f"evaluation.tasks.path: there is no folder {tasks['path']} with tasks (*.yaml)."


def _weights_problems(key: str, entry: dict[str, Any]) -> Iterator[str]:
    if entry["source"] == "random":
        yield from _weights_problems(f"{key}.tokenizer", entry["tokenizer"])
        if entry["tokenizer"]["source"] == "random":
            yield f"{key}.tokenizer.source: random weights need a real tokenizer: package, hub or folder."
    if entry["source"] == "folder":
        folder = locate(entry["path"])
        if not folder.is_dir():
            yield f"{key}.path: there is no folder {entry['path']}."
        else:
            for name in ("config.json", "tokenizer.json"):
                if not (folder / name).is_file():
                    yield f"{key}.path: {entry['path']} has no {name}; name a Hugging Face folder, as save_pretrained writes it."


def _offered(config: dict[str, Any]) -> Iterator[Offered]:
    for kind, axis in (("users", "concurrencies"), ("rate", "rates"), ("speed", "speeds")):
        yield from (Offered(kind, value) for value in config[axis])


def _prompts_problems(key: str, entry: dict[str, Any]) -> Iterator[str]:
    if entry["min_tokens"] > entry["max_tokens"]:
        yield f"{key}.min_tokens: {entry['min_tokens']} is more than max_tokens, {entry['max_tokens']}: no prompt can be chosen."
    if entry["source"] in ("file", "trace"):
        path = locate(entry["path"])
        if not path.is_file():
            yield f"{key}.path: there is no file {entry['path']}."
        elif not path.read_text().strip():
            yield f"{key}.path: {entry['path']} is empty; it must hold one request a line."


def _backend_problems(key: str, entry: dict[str, Any], config: dict[str, Any]) -> Iterator[str]:
    name = entry.get("adapter", entry["name"])
    if name not in backends.names():
        yield f"{key}.{'adapter' if 'adapter' in entry else 'name'}: there is no backend '{name}'; there are: {', '.join(backends.names())}."
        return
    adapter = backends.load(name)
    device = config["server"]["device"]
    if device not in adapter.DEVICES:
        yield f"{key}: {name} runs on {' or '.join(sorted(adapter.DEVICES))}, and server.device is {device}. Set server.device, or drop one of the two."
    if entry["runtime"] == "process":
        if "image" in entry:
            yield f"{key}.image: the runtime process uses no image; write `runtime: docker` (or podman, apptainer), or drop it."
        if "python" not in entry and (adapter.ENVIRONMENT is None or (device == "gpu" and adapter.ENVIRONMENT != PIPELINE)):
            yield f"{key}.python: name the interpreter that has {name} for the GPU, or write `runtime: docker`; envs/ locks none."
        if "python" in entry and not Path(entry["python"]).expanduser().is_file():
            yield f"{key}.python: there is no interpreter {entry['python']}."
    elif "python" in entry:
        yield f"{key}.python: in a container the image's own interpreter runs; drop it, or write `runtime: process`."
    elif not (entry.get("image") or adapter.IMAGE or adapter.CONTAINER):
        yield f"{key}.image: {name} has no image of its own; name one."
    asked = {quantization["name"]: quantization for quantization in config["quantizations"]}
    forced = [workload["name"] for workload in config["workloads"] if workload["output_length"] == "forced"]
    if forced and not adapter.FORCES_LENGTH:
        yield f"{key}: {name} cannot force the length of an answer, as workload '{forced[0]}' asks; write `output_length: natural` there, or drop one of the two."
    for quantization in entry.get("quantizations", asked):
        if quantization not in asked:
            yield f"{key}.quantizations: there is no quantization '{quantization}'; there are: {', '.join(asked)}."
        elif not _serves(adapter, asked[quantization]):
            able = [other for other, made in asked.items() if _serves(adapter, made)]
            layout = layout_of(asked[quantization])
            remedy = f"Write `quantizations: [{', '.join(able)}]` in this entry" if able else "Name a quantization that it serves"
            yield (
                f"{key}: {name} cannot serve the quantization '{quantization}' (method {asked[quantization]['method']}{f', layout {layout}' if layout else ''});"
                f" it serves: {', '.join(_served_by(adapter))}. {remedy}, or drop '{quantization}'."
            )
    known = {option.name: option for option in dataclasses.fields(adapter.Options)}
    hints = typing.get_type_hints(adapter.Options)
    for option, value in entry["options"].items():
        if option not in known:
            yield f"{key}.options: {name} has no option '{option}'; it has: {', '.join(known) or 'none'}."
        elif type(value) is not hints[option] and not (hints[option] is float and type(value) is int):
            yield f"{key}.options.{option}: {value!r} is not of type {hints[option].__name__}."


def layout_of(quantization: dict[str, Any]) -> str | None:
    """What a quantization of the configuration comes out as; None where the weights stay as they are before the build."""
    method = METHODS.get(quantization["method"])
    return quantization.get("layout", method.layouts[0]) if method else None


def _serves(adapter: backends.Adapter, quantization: dict[str, Any]) -> bool:
    return quantization["method"] == "none" or quantization["method"] in adapter.METHODS or layout_of(quantization) in adapter.LAYOUTS


def _served_by(adapter: backends.Adapter) -> list[str]:
    """The methods and layouts that an adapter serves, in words, of those that quantize makes."""
    made = sorted(f"{name} (layout {layout})" for name, method in METHODS.items() for layout in method.layouts if layout in adapter.LAYOUTS)
    return ["none", *sorted(adapter.METHODS), *made]


def _quantization_problems(key: str, entry: dict[str, Any]) -> Iterator[str]:
    """What a method cannot be asked for."""
    name = entry["method"]
    if name not in METHODS:
        if "layout" in entry:
            yield f"{key}.layout: the method {name} writes none; drop it."
        return
    method = METHODS[name]
    for option, able in (("layout", method.layouts), ("bits", method.bits), ("symmetric", method.symmetric)):
        if able and entry.get(option, able[0]) not in able:
            yield f"{key}.{option}: {name} cannot give {entry[option]}; it gives: {', '.join(map(str, able))}."
    if "python" in entry and not Path(entry["python"]).expanduser().is_file():
        yield f"{key}.python: there is no interpreter {entry['python']}."
    if "calibration" in entry:
        yield from _fixed_texts_problems(f"{key}.calibration.prompts", entry["calibration"]["prompts"])


def _fixed_texts_problems(key: str, entry: dict[str, Any]) -> Iterator[str]:
    """Texts that are not offered as load: of a file or the hub."""
    if entry["source"] == "trace":
        yield f"{key}.source: a trace holds no texts; name a file or a data set of the hub."
    yield from _prompts_problems(key, entry)


def locate(path: str) -> Path:
    """A path of the configuration: from the working directory, else from the folder of the Snakefile."""
    here = Path(path).expanduser()
    return here.absolute() if here.exists() else ROOT / path


def environment(name: str) -> Environment:
    """The environment that envs/<name>.txt locks, for this interpreter and machine; 'pipeline' is the pipeline's own."""
    python = f"{platform.python_implementation()} {platform.python_version()} {platform.machine()}"
    if name == PIPELINE:
        return Environment(name, "pipeline", python=python, interpreter=sys.executable)
    return Environment(name, "lock", python=python, lock=name, lock_sha256=sha256(ROOT / "envs" / f"{name}.txt"))


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
    for entry in config.get("workloads") or []:
        prompts = entry.get("prompts") if isinstance(entry, dict) else None
        if isinstance(prompts, dict) and prompts.get("rules") == "study":
            prompts |= STUDY | prompts


def _commit(kind: str, entry: dict[str, Any], pin: Pin) -> str:
    revision: str = entry["revision"]
    return revision if COMMIT.fullmatch(revision) else pin(kind, entry["repo_id"], revision)


def _weights(entry: dict[str, Any], pin: Pin) -> Weights:
    fields = {name: value for name, value in entry.items() if name not in ("name", "licence", "note", "tokenizer", "quantizations", "backends")}
    if entry["source"] == "hub":
        fields |= {"revision": _commit("model", entry, pin), "pickle_weights": tuple(entry["pickle_weights"])}
    if entry["source"] == "folder":
        fields |= {"path": str(locate(entry["path"])), "files_sha256": folder_sha256(locate(entry["path"]))}
    if entry["source"] == "random":
        fields["tokenizer"] = _weights(entry["tokenizer"], pin)
    return Weights(**fields)


def _model(entry: dict[str, Any], pin: Pin, converter: str | None) -> Model:
    weights = _weights(entry, pin)
    parts = [weights, *([weights.tokenizer] if weights.tokenizer else [])]
    made = any(part.source in ("package", "random") for part in parts)
    return Model(entry["name"], weights, (pins(CONVERTER, CONVERTER_PINS) if converter is None else {"interpreter": converter}) if made else None)


def pins(environment: str, packages: tuple[str, ...]) -> dict[str, str]:
    """Versions that a lock gives to some packages."""
    lock = (ROOT / "envs" / f"{environment}.txt").read_text()
    return {name: version for name, version in re.findall(r"^([\w.-]+)==(\S+)", lock, re.MULTILINE) if name in packages}


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
        return Environment(f"{entry['name']}.python", "interpreter", interpreter=str(Path(entry["python"]).expanduser()), env=entry["env"])
    if entry["runtime"] == "process":
        assert adapter.ENVIRONMENT
        return environment(adapter.ENVIRONMENT)
    image = entry.get("image") or adapter.IMAGE
    if image:
        return Environment(f"{entry['name']}.image", "image", runtime=entry["runtime"], image=pinned_image(image, pin))
    return Environment(
        f"{entry['name']}.image",
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
    name, _, tag = image.rpartition(":") if ":" in image.rsplit("/", 1)[-1] else (image, "", "latest")
    digest = pin("image", name, tag)
    if digest.startswith("id:"):
        return digest.removeprefix("id:")
    return f"{name}@{digest}" if digest.startswith("sha256:") else f"{name}:{digest}"


def _quantization(entry: dict[str, Any], seed: int, pin: Pin) -> Quantization:
    fields = {name: value for name, value in entry.items() if name != "python"}
    method = METHODS.get(entry["method"])
    if method:
        fields["layout"] = layout_of(entry)
    if method and method.calibrated:
        asked = entry["calibration"]
        fields["calibration"] = Calibration(_prompts(asked["prompts"], pin), asked["samples"], asked["sequence_length"])
        fields.setdefault("seed", seed)
    if method and method.environment:
        python = entry.get("python")
        own = Environment(f"{entry['name']}.python", "interpreter", interpreter=str(Path(python).expanduser()), env=entry["env"]) if python else environment(method.environment)
        fields["environment"] = own
    return Quantization(**fields)


def _evaluation(entry: dict[str, Any], pin: Pin) -> Evaluation:
    text, prompts = (_prompts(entry[name], pin) if entry[name] else None for name in ("text", "prompts"))
    tasks = entry.get("tasks")
    if tasks:
        folder = {"path": str(locate(tasks["path"])), "files_sha256": folder_sha256(locate(tasks["path"]))} if tasks["path"] else {}
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
