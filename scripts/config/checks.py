"""What the schema cannot say: names used twice, names of nothing, files that are not there, pairs that cannot be."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import backends
import quantizers
from config.paths import locate
from pipeline.spec import Offered

# The environment of a backend that has none of its own: the pipeline's.
PIPELINE = "pipeline"


def problems(config: dict[str, Any]) -> Iterator[str]:
    """What the schema cannot say: names used twice, names of nothing, files that are not there, pairs that cannot be."""
    for axis in ("models", "quantizations", "backends", "workloads"):
        names = [entry["name"] for entry in config[axis]]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"{axis}: the name '{name}' stands {names.count(name)} times; give each entry a name of its own."
    yield from _results_problems(config["results"])
    yield from _alike(config)
    if not list(offered(config)):
        yield "concurrencies: no load is offered; name numbers of users here, requests a second in rates, or speeds of a trace in speeds."
    if config["speeds"] and not any(
        entry["prompts"]["source"] == "trace" for entry in config["workloads"]
    ):
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
            yield from (
                f"models[{position}].{axis}: there is none called '{name}'; there are: {', '.join(there)}."
                for name in entry.get(axis, [])
                if name not in there
            )
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


def _results_problems(results: str) -> Iterator[str]:
    if set(results) & set("{}"):
        yield f"results: {results} holds braces, which Snakemake takes for a wildcard; name another folder."
    if not results.strip("/ .") or results.startswith("-") or "\0" in results:
        yield f"results: {results!r} is no folder to write to; name one, such as results."
    elif Path(results).expanduser().exists() and not Path(results).expanduser().is_dir():
        yield f"results: {results} is there and is no folder; name another."


def _alike(config: dict[str, Any]) -> Iterator[str]:
    """Loads whose names are the same: one of the two would not be measured."""
    seen: dict[str, Offered] = {}
    for one in offered(config):
        other = seen.setdefault(one.name, one)
        if other is not one:
            axis = {"users": "concurrencies", "rate": "rates", "speed": "speeds"}[one.kind]
            yield f"{axis}: {other.value!r} and {one.value!r} are both called {one.name}; keep one."


def offered(config: dict[str, Any]) -> Iterator[Offered]:
    for kind, axis in (("users", "concurrencies"), ("rate", "rates"), ("speed", "speeds")):
        yield from (Offered(kind, value) for value in config[axis])


def _prompts_problems(key: str, entry: dict[str, Any]) -> Iterator[str]:
    if entry["min_tokens"] > entry["max_tokens"]:
        yield f"{key}.min_tokens: {entry['min_tokens']} is more than max_tokens, {entry['max_tokens']}: no prompt can be chosen."
    if entry["source"] in ("file", "trace"):
        path = locate(entry["path"])
        if not path.is_file():
            yield f"{key}.path: there is no file {entry['path']}."
        elif path.suffix != ".parquet" and not path.read_bytes().strip():
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
        if "python" not in entry and (
            adapter.ENVIRONMENT is None or (device == "gpu" and adapter.ENVIRONMENT != PIPELINE)
        ):
            yield f"{key}.python: name the interpreter that has {name} for the GPU, or write `runtime: docker`; envs/ locks none."
        if "python" in entry and not Path(entry["python"]).expanduser().is_file():
            yield f"{key}.python: there is no interpreter {entry['python']}."
    elif "python" in entry:
        yield f"{key}.python: in a container the image's own interpreter runs; drop it, or write `runtime: process`."
    elif not (entry.get("image") or adapter.IMAGE or adapter.CONTAINER):
        yield f"{key}.image: {name} has no image of its own; name one."
    asked = {quantization["name"]: quantization for quantization in config["quantizations"]}
    forced = [
        workload["name"]
        for workload in config["workloads"]
        if workload["output_length"] == "forced"
    ]
    if forced and not adapter.FORCES_LENGTH:
        yield f"{key}: {name} cannot force the length of an answer, as workload '{forced[0]}' asks; write `output_length: natural` there, or drop one of the two."
    for quantization in entry.get("quantizations", asked):
        if quantization not in asked:
            yield f"{key}.quantizations: there is no quantization '{quantization}'; there are: {', '.join(asked)}."
        elif not _serves(adapter, asked[quantization]):
            able = [other for other, made in asked.items() if _serves(adapter, made)]
            layout = layout_of(asked[quantization])
            remedy = (
                f"Write `quantizations: [{', '.join(able)}]` in this entry"
                if able
                else "Name a quantization that it serves"
            )
            yield (
                f"{key}: {name} cannot serve the quantization '{quantization}' (method {asked[quantization]['method']}{f', layout {layout}' if layout else ''});"
                f" it serves: {', '.join(_served_by(adapter))}. {remedy}, or drop '{quantization}'."
            )
    known = {option.name: option for option in dataclasses.fields(adapter.Options)}
    hints = typing.get_type_hints(adapter.Options)
    for option, value in entry["options"].items():
        if option not in known:
            yield f"{key}.options: {name} has no option '{option}'; it has: {', '.join(known) or 'none'}."
        elif type(value) is not hints[option] and not (
            hints[option] is float and type(value) is int
        ):
            yield f"{key}.options.{option}: {value!r} is not of type {hints[option].__name__}."


def method_of(quantization: dict[str, Any]) -> quantizers.Method | None:
    """Who makes a quantization of the configuration; None where the weights stay, or a backend quantizes in its build."""
    return (
        quantizers.load(quantization["method"])
        if quantization["method"] in quantizers.names()
        else None
    )


def layout_of(quantization: dict[str, Any]) -> str | None:
    """What a quantization of the configuration comes out as; None where the weights stay as they are before the build."""
    method = method_of(quantization)
    return quantization.get("layout", method.layouts[0]) if method else None


def _serves(adapter: backends.Adapter, quantization: dict[str, Any]) -> bool:
    return (
        quantization["method"] == "none"
        or quantization["method"] in adapter.METHODS
        or layout_of(quantization) in adapter.LAYOUTS
    )


def _served_by(adapter: backends.Adapter) -> list[str]:
    """The methods and layouts that an adapter serves, in words, of those that quantize makes."""
    made = sorted(
        f"{name} (layout {layout})"
        for name in quantizers.names()
        for layout in quantizers.load(name).layouts
        if layout in adapter.LAYOUTS
    )
    return ["none", *sorted(adapter.METHODS), *made]


def _quantization_problems(key: str, entry: dict[str, Any]) -> Iterator[str]:
    """What a method cannot be asked for."""
    name = entry["method"]
    method = method_of(entry)
    if method is None:
        if "layout" in entry:
            yield f"{key}.layout: the method {name} writes none; drop it."
        return
    for option, able in (
        ("layout", method.layouts),
        ("bits", method.bits),
        ("symmetric", method.symmetric),
    ):
        if able and entry.get(option, able[0]) not in able:
            yield f"{key}.{option}: {name} cannot give {entry[option]}; it gives: {', '.join(map(str, able))}."
    if "python" in entry and not Path(entry["python"]).expanduser().is_file():
        yield f"{key}.python: there is no interpreter {entry['python']}."
    if "calibration" in entry:
        yield from _fixed_texts_problems(
            f"{key}.calibration.prompts", entry["calibration"]["prompts"]
        )


def _fixed_texts_problems(key: str, entry: dict[str, Any]) -> Iterator[str]:
    """Texts that are not offered as load: of a file or the hub."""
    if entry["source"] == "trace":
        yield f"{key}.source: a trace holds no texts; name a file or a data set of the hub."
    yield from _prompts_problems(key, entry)
