"""Bad configuration: one clear line each, before any work starts."""

from __future__ import annotations

import copy
import datetime
import json
import math
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import backends
from config import experiment
from config.schema import SCHEMA, repeated_keys
from pipeline.failure import Failure
from pipeline.spec import Cell, from_json, to_json

ROOT = Path(__file__).parent.parent
DEFAULT: dict[str, Any] = yaml.safe_load((ROOT / "config.yaml").read_text())
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))


def changed(path: str, value: Any) -> dict[str, Any]:
    """The default configuration with one thing changed; `path` is dotted, numbers index lists, '-' appends."""
    config = copy.deepcopy(DEFAULT)
    *way, last = path.split(".")
    place: Any = config
    for step in way:
        place = place[int(step)] if isinstance(place, list) else place[step]
    if last == "-":
        place.append(value)
    elif value is None:
        del place[int(last) if isinstance(place, list) else last]
    else:
        place[int(last) if isinstance(place, list) else last] = value
    return config


AWQ = {
    "name": "awq",
    "method": "llmcompressor",
    "calibration": {"prompts": {"source": "file", "path": "prompts/showdown.jsonl"}},
}
BAD = [
    ("foo", 1, "unknown key 'foo'"),
    ("backends.1.optoins", {}, "backends[1]: unknown key 'optoins'; did you mean 'options'?"),
    ("models.0.repo_id", "a/b", "models[0]: unknown key 'repo_id'"),
    ("workloads.0.prompts.repo_id", "a/b", "workloads[0].prompts: unknown key 'repo_id'"),
    ("seed", "x", "seed: 'x' is not of type 'integer'"),
    ("concurrencies", [0], "concurrencies[0]: 0 is less than the minimum of 1"),
    ("concurrencies", [2, 2], "concurrencies: [2, 2] has non-unique elements"),
    ("concurrencies", [50_000_000], "50000000 is greater than the maximum of 100000"),
    ("concurrencies", [2.0], "concurrencies[0]: 2.0 is not of type 'integer'"),
    ("trials", 2.0, "trials: 2.0 is not of type 'integer'"),
    ("seed", True, "seed: True is not of type 'integer'"),
    ("workloads", 5, "workloads: 5 is not of type 'array'"),
    ("workloads.0", 5, "workloads[0]: 5 is not of type 'object'"),
    ("load.window_s", math.nan, "load.window_s: nan is not a number that can be used"),
    ("rates", [math.inf], "rates[0]: inf is not a number that can be used"),
    ("rates", [20.0000001, 20.0000002], "rates: 20.0000001 and 20.0000002 are both called r20"),
    ("slo.ttft_ms", math.nan, "slo.ttft_ms: nan is not a number that can be used"),
    ("load.window_s", 1e-7, "load.window_s: 1e-07 is less than the minimum of 0.1"),
    ("models.0.name", "a\n", "models[0].name: 'a\\n' does not match"),
    ("models.0.name", "a" * 81, "is too long"),
    ("results", "/", "results: '/' is no folder to write to"),
    ("results", ".", "results: '.' is no folder to write to"),
    ("results", "-x", "results: '-x' is no folder to write to"),
    ("results", "/etc/hostname", "results: /etc/hostname is there and is no folder"),
    ("models.0.note", "a\ud800", "models[0].note: it holds half a character"),
    ("results", "a{b}", "results: a{b} holds braces"),
    (
        "models.0.note",
        datetime.date(2026, 1, 1),
        "models[0].note: datetime.date(2026, 1, 1) is a date",
    ),
    ("models.0.quantizations", ["q"], "there is none called 'q'"),
    ("concurrencies", [], "concurrencies: no load is offered"),
    ("rates", [0], "rates[0]: 0 is less than or equal to the minimum of 0"),
    ("speeds", [1], "speeds: no workload replays a trace"),
    ("load.burstiness", 0.5, "load.burstiness: only arrivals: gamma can be bursty, not poisson"),
    (
        "load.arrivals",
        "weibull",
        "load.arrivals: 'weibull' is not one of ['constant', 'poisson', 'gamma']",
    ),
    (
        "workloads.0.output_length",
        "long",
        "workloads[0].output_length: 'long' is not one of ['natural', 'forced']",
    ),
    (
        "workloads.0.prompts",
        {"source": "trace", "path": "x.csv"},
        "workloads[0].prompts: 'layout' is a required property",
    ),
    (
        "workloads.0.prompts",
        {"source": "trace", "path": "x.csv", "layout": "azure"},
        "workloads[0].prompts.path: there is no file x.csv",
    ),
    (
        "concurrencies",
        [64],
        "server.max_sequences: 8 is less than the largest of concurrencies, 64",
    ),
    ("load.window_s", 0, "load.window_s: 0 is less than the minimum of 0.1"),
    ("models.0.gguf", None, "models[0]: 'gguf' is a required property"),
    (
        "models.0.source",
        "torrent",
        "models[0].source: 'torrent' is not one of ['package', 'hub', 'folder', 'random']",
    ),
    ("models.0.name", "a/b", "models[0].name: 'a/b' does not match"),
    ("models.0.name", "-a", "models[0].name: '-a' does not match"),
    ("backends.-", {"name": "vllm"}, "backends: the name 'vllm' stands 2 times"),
    (
        "backends.0.adapter",
        "openvno",
        "backends[0].adapter: there is no backend 'openvno'; there are: llamacpp, lmdeploy, mlc_llm",
    ),
    (
        "backends.0.options",
        {"x": 1},
        "backends[0].options: llamacpp has no option 'x'; it has: none",
    ),
    (
        "server.device",
        "gpu",
        "backends[0]: llamacpp runs on cpu, and server.device is gpu. Set server.device",
    ),
    ("server.policy", "fair", "server.policy: 'fair' is not one of ['equal', 'as_shipped']"),
    ("backends.-", {"name": "tgi"}, "backends[3]: tgi runs on gpu, and server.device is cpu"),
    (
        "backends.-",
        {"name": "tgi"},
        "backends[3].python: name the interpreter that has tgi for the GPU, or write `runtime: docker`",
    ),
    (
        "backends.0.image",
        "x:1",
        "backends[0].image: the runtime process uses no image; write `runtime: docker`",
    ),
    (
        "backends.0.runtime",
        "lxc",
        "backends[0].runtime: 'lxc' is not one of ['process', 'docker', 'podman', 'apptainer']",
    ),
    (
        "backends.0.python",
        "/nowhere/python",
        "backends[0].python: there is no interpreter /nowhere/python",
    ),
    (
        "backends.0",
        {"name": "llamacpp", "runtime": "docker", "python": "/bin/sh"},
        "backends[0].python: in a container the image's own interpreter runs",
    ),
    (
        "models.0.backends",
        ["tgi"],
        "models[0].backends: there is none called 'tgi'; there are: llamacpp, openvino, vllm",
    ),
    (
        "models.0.quantizations",
        ["awq"],
        "models[0].quantizations: there is none called 'awq'; there are: none",
    ),
    (
        "backends.2.options",
        {"kv_cache_gib": "a"},
        "backends[2].options.kv_cache_gib: 'a' is not of type int",
    ),
    (
        "backends.0.quantizations",
        ["awq"],
        "backends[0].quantizations: there is no quantization 'awq'; there are: none",
    ),
    (
        "quantizations.-",
        {"name": "q8", "method": "gguf", "type": "Q8_0"},
        "backends[2]: vllm cannot serve the quantization 'q8' (method gguf, layout gguf); it serves: none, autoawq (layout awq),"
        " llmcompressor (layout compressed-tensors), lmdeploy (layout awq). Write `quantizations: [none]` in this entry, or drop 'q8'.",
    ),
    (
        "quantizations.-",
        {"name": "q", "method": "mlc", "type": "q4f16_1"},
        "backends[2]: vllm cannot serve the quantization 'q' (method mlc); it serves: none, autoawq",
    ),
    (
        "quantizations.-",
        AWQ,
        "backends[0]: llamacpp cannot serve the quantization 'awq' (method llmcompressor, layout compressed-tensors); it serves: none, gguf (layout gguf).",
    ),
    (
        "quantizations.-",
        AWQ | {"bits": 8},
        "quantizations[1].bits: llmcompressor cannot give 8; it gives: 4.",
    ),
    (
        "quantizations.-",
        AWQ | {"layout": "awq"},
        "quantizations[1].layout: llmcompressor cannot give awq; it gives: compressed-tensors.",
    ),
    (
        "quantizations.-",
        AWQ | {"method": "autoawq", "symmetric": True},
        "quantizations[1].symmetric: autoawq cannot give True; it gives: False.",
    ),
    (
        "quantizations.-",
        AWQ | {"method": "mlc", "type": "q4f16_1"},
        "quantizations[1]: unknown key 'calibration'",
    ),
    (
        "quantizations.-",
        {"name": "q", "method": "modelopt", "type": "fp8", "layout": "awq"},
        "quantizations[1].layout: the method modelopt writes none; drop it.",
    ),
    (
        "quantizations.-",
        {"name": "q", "method": "llmcompressor"},
        "quantizations[1]: 'calibration' is a required property",
    ),
    (
        "quantizations.-",
        {"name": "q", "method": "openvino", "python": "/nowhere"},
        "quantizations[1].python: there is no interpreter /nowhere",
    ),
    (
        "quantizations.-",
        AWQ | {"calibration": {"prompts": {"source": "file", "path": "nowhere.jsonl"}}},
        "quantizations[1].calibration.prompts.path: there is no file nowhere.jsonl",
    ),
    (
        "evaluation.text.path",
        "nowhere.jsonl",
        "evaluation.text.path: there is no file nowhere.jsonl",
    ),
    (
        "evaluation.prompts",
        {"source": "trace", "path": "prompts/showdown.jsonl", "layout": "azure"},
        "evaluation.prompts.source: a trace holds no texts",
    ),
    ("evaluation.text.pth", "x", "evaluation.text: unknown key 'pth'; did you mean 'path'?"),
    (
        "evaluation.prompts.source",
        "torrent",
        "evaluation.prompts.source: 'torrent' is not one of ['file', 'hub', 'trace']",
    ),
    (
        "evaluation.tasks",
        {"names": ["x"], "path": "nowhere"},
        "evaluation.tasks.path: there is no folder nowhere with tasks",
    ),
    ("evaluation.tasks", {"names": ["../x"]}, "evaluation.tasks.names[0]: '../x' does not match"),
    (
        "evaluation.perplexity",
        5,
        "evaluation: unknown key 'perplexity'; did you mean 'perplexity_percent'?",
    ),
    (
        "quantizations.-",
        {"name": "q8", "method": "gguf"},
        "quantizations[1]: 'type' is a required property",
    ),
    (
        "workloads.0.prompts.path",
        "nowhere.jsonl",
        "workloads[0].prompts.path: there is no file nowhere.jsonl",
    ),
    (
        "workloads.0.prompts.path",
        "/dev/null",
        "workloads[0].prompts.path: there is no file /dev/null",
    ),
    (
        "workloads.0.prompts.min_tokens",
        500,
        "workloads[0].prompts.min_tokens: 500 is more than max_tokens",
    ),
    (
        "models.0",
        {"name": "m", "source": "folder", "path": "nowhere"},
        "models[0].path: there is no folder nowhere",
    ),
    (
        "models.0",
        {"name": "m", "source": "folder", "path": "scripts"},
        "models[0].path: scripts has no config.json; name a Hugging Face folder",
    ),
    (
        "models.0",
        {
            "name": "m",
            "source": "random",
            "architecture": {"model_type": "llama", "vocab_size": 9},
            "tokenizer": {
                "source": "random",
                "architecture": {"model_type": "llama", "vocab_size": 9},
                "tokenizer": {"source": "folder", "path": "x"},
            },
        },
        "models[0].tokenizer.source: random weights need a real tokenizer",
    ),
]


@pytest.mark.parametrize(
    ("path", "value", "message"), BAD, ids=[f"{path}={str(value)[:20]}" for path, value, _ in BAD]
)
def test_bad_input_names_file_key_and_remedy(path: str, value: Any, message: str) -> None:
    with pytest.raises(experiment.ConfigError) as caught:
        experiment.load(changed(path, value), "my.yaml")

    lines = str(caught.value).splitlines()
    assert any(line.startswith("my.yaml: ") and message in line for line in lines), lines


HUB = {"name": "m", "source": "hub", "repo_id": "owner/m"}
DOLLY = {
    "source": "hub",
    "repo_id": "databricks/databricks-dolly-15k",
    "file": "databricks-dolly-15k.jsonl",
    "rules": "study",
    "max_tokens": 200,
}


def test_a_key_that_is_no_text_is_told() -> None:
    with pytest.raises(experiment.ConfigError, match=r"the key 1 is not text"):
        experiment.load({**copy.deepcopy(DEFAULT), 1: "x"})


def test_a_key_given_twice_is_told_with_both_lines(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("a: 1\nload:\n  x: 1\n  y: 2\n  x: 3\nlist: [{b: 1, b: 2}]\n")

    assert list(repeated_keys(tmp_path / "c.yaml")) == [
        "load.x: given twice, in lines 3 and 5; keep one.",
        "list[0].b: given twice, in lines 6 and 6; keep one.",
    ]


def test_anchors_that_hold_themselves_end(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("a: &a [*a]\nb: &b {c: *b}\n")

    assert list(repeated_keys(tmp_path / "c.yaml")) == []


def test_a_backend_and_a_quantization_of_one_name_keep_their_interpreters(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text("")
    config = changed("quantizations.-", {**AWQ, "python": str(tmp_path / "one")})
    config["backends"] = [
        {"name": "awq", "adapter": "vllm", "python": str(tmp_path / "two")},
    ]

    planned = experiment.load(config)

    quantizer, server = (
        planned.quantizations["awq"].environment,
        planned.backends["awq"].environment,
    )
    assert quantizer
    assert (quantizer.interpreter, server.interpreter) == (
        str(tmp_path / "one"),
        str(tmp_path / "two"),
    )
    assert quantizer.name != server.name


def test_a_home_folder_of_results_is_expanded() -> None:
    assert experiment.load(changed("results", "~/x")).results == str(Path("~/x").expanduser())


def test_a_local_parquet_file_of_prompts_is_taken(tmp_path: Path) -> None:
    pq.write_table(pa.table({"context": ["a"], "instruction": ["b"]}), tmp_path / "p.parquet")

    experiment.load(changed("workloads.0.prompts.path", str(tmp_path / "p.parquet")))


def test_revisions_that_are_no_commits_are_pinned_and_commits_are_not() -> None:
    asked = []

    def pin(kind: str, name: str, revision: str) -> str:
        asked.append((kind, name, revision))
        return "c" * 40

    config = changed("workloads.0.prompts", DOLLY) | {
        "models": [
            HUB,
            HUB | {"name": "n", "revision": "v1"},
            HUB | {"name": "o", "revision": "0" * 40},
        ]
    }
    planned = experiment.load(config, pin=pin)

    assert asked == [
        ("model", "owner/m", "main"),
        ("model", "owner/m", "v1"),
        ("dataset", "databricks/databricks-dolly-15k", "main"),
    ]
    assert [planned.models[name].weights.revision for name in "mno"] == [
        "c" * 40,
        "c" * 40,
        "0" * 40,
    ]
    assert planned.workloads["chat"].prompts.revision == "c" * 40


def test_a_revision_that_cannot_be_pinned_is_a_problem_of_the_configuration() -> None:
    def pin(*_: str) -> str:
        raise Failure("download_failed", "owner/m at main: access is gated.", "Ask for access.")

    with pytest.raises(
        experiment.ConfigError,
        match=r"my\.yaml: owner/m at main: access is gated\. Ask for access\.",
    ):
        experiment.load(changed("models.0", HUB), "my.yaml", pin)


def test_the_studys_rules_fill_what_the_configuration_leaves_open() -> None:
    prompts = (
        experiment.load(changed("workloads.0.prompts", copy.deepcopy(DOLLY)))
        .workloads["chat"]
        .prompts
    )

    assert (prompts.columns, prompts.join, prompts.min_tokens, prompts.max_tokens) == (
        ("context", "instruction"),
        "",
        30,
        200,
    )


def test_code_of_a_model_is_trusted_only_where_the_configuration_says_so() -> None:
    assert not any(
        cell.model.weights.trust_remote_code
        for cell in experiment.load(copy.deepcopy(DEFAULT)).cells()
    )
    assert (
        experiment.load(changed("models.0", HUB | {"trust_remote_code": True}))
        .models["m"]
        .weights.trust_remote_code
    )


def test_images_are_pinned_by_digest_and_digests_stay_as_they_are() -> None:
    asked = []

    def pin(kind: str, name: str, tag: str) -> str:
        asked.append((kind, name, tag))
        return "sha256:" + "d" * 64

    served = [
        {"name": "a", "adapter": "vllm", "runtime": "docker"},
        {"name": "b", "adapter": "vllm", "runtime": "podman", "image": "localhost:5000/vllm"},
        {"name": "c", "adapter": "vllm", "runtime": "docker", "image": "vllm@sha256:" + "e" * 64},
        {"name": "d", "adapter": "llamacpp", "runtime": "docker"},
    ]
    planned = experiment.load(changed("backends", served), pin=pin).backends

    assert asked == [
        ("image", "vllm/vllm-openai", "v0.31.0"),
        ("image", "localhost:5000/vllm", "latest"),
    ]
    assert [planned[name].environment.image for name in "ab"] == [
        "vllm/vllm-openai@sha256:" + "d" * 64,
        "localhost:5000/vllm@sha256:" + "d" * 64,
    ]
    assert planned["c"].environment.image == "vllm@sha256:" + "e" * 64
    assert (
        planned["d"].environment.kind,
        planned["d"].environment.image,
        planned["d"].environment.lock,
    ) == ("container", "python", "llamacpp")


def test_a_model_is_served_only_as_it_says() -> None:
    config = changed(
        "models.-",
        DEFAULT["models"][0] | {"name": "other", "backends": ["llamacpp"], "quantizations": ["q8"]},
    )
    config["quantizations"].append({"name": "q8", "method": "gguf", "type": "Q8_0"})
    config["backends"][2]["quantizations"] = ["none"]
    found = {
        (cell.model.name, cell.backend.name, cell.quantization.name)
        for cell in experiment.load(config).cells()
    }

    assert {entry for entry in found if entry[0] == "other"} == {("other", "llamacpp", "q8")}
    assert len(found) == 1 + 5


def test_an_empty_prompt_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("\n \n")

    with pytest.raises(
        experiment.ConfigError, match=r"none\.jsonl is empty; it must hold one request a line"
    ):
        experiment.load(changed("workloads.0.prompts.path", str(tmp_path / "none.jsonl")))


def test_a_forced_length_is_refused_where_a_backend_cannot_force_it() -> None:
    config = changed("workloads.0.output_length", "forced")
    config["backends"] = [{"name": "transformers"}]

    with pytest.raises(
        experiment.ConfigError,
        match=r"backends\[0\]: transformers cannot force the length of an answer, as workload 'chat' asks",
    ):
        experiment.load(config)


def test_loads_of_every_kind_make_cells_and_speeds_only_those_of_a_trace(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n")
    trace = {
        "name": "azure",
        "prompts": {"source": "trace", "path": str(tmp_path / "t.csv"), "layout": "azure"},
        "max_tokens": 8,
    }
    config = changed("workloads.-", trace) | {
        "concurrencies": [8],
        "rates": [0.5],
        "speeds": [2],
        "backends": [{"name": "vllm"}],
        "trials": 1,
    }

    paths = {cell.path for cell in experiment.load(config).cells()}

    assert paths == {
        f"smollm2-135m-instruct/none/vllm/t1/{load}"
        for load in ("chat/c8", "chat/r0.5", "azure/c8", "azure/r0.5", "azure/x2")
    }


def test_every_problem_is_told_at_once() -> None:
    config = changed("seed", "x")
    config["concurrencies"] = [0]

    with pytest.raises(experiment.ConfigError) as caught:
        experiment.load(config)

    assert len(str(caught.value).splitlines()) == 2


def test_the_default_is_three_backends_at_two_concurrencies_three_times() -> None:
    cells = list(experiment.load(copy.deepcopy(DEFAULT)).cells())

    assert {cell.backend.name for cell in cells} == {"llamacpp", "openvino", "vllm"}
    assert len({cell.offered for cell in cells}) == 2
    assert len({cell.path for cell in cells}) == len(cells) == 3 * 6
    assert {cell.trial for cell in cells} == {1, 2, 3}


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_every_experiment_can_be_planned(file: Path) -> None:
    """One that is laid over another is named after it, with a word more."""
    files = [
        other
        for other in EXPERIMENTS
        if file.stem == other.stem or file.stem.startswith(f"{other.stem}-")
    ]
    config = copy.deepcopy(DEFAULT)
    for other in sorted(files, key=lambda path: len(path.stem)):
        config |= yaml.safe_load(other.read_text())

    assert list(experiment.load(config, file.name).cells())


def test_a_cell_survives_its_json() -> None:
    for cell in experiment.load(copy.deepcopy(DEFAULT)).cells():
        assert from_json(Cell, json.loads(to_json(cell))) == cell


def test_the_order_of_keys_changes_no_specification() -> None:
    backwards = {key: DEFAULT[key] for key in reversed(DEFAULT)}
    backwards["models"] = [dict(reversed(entry.items())) for entry in DEFAULT["models"]]

    assert [to_json(cell) for cell in experiment.load(copy.deepcopy(DEFAULT)).cells()] == [
        to_json(cell) for cell in experiment.load(backwards).cells()
    ]


def test_a_model_folder_is_known_by_content_not_by_time(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 5_000_000)
    before = experiment.folder_sha256(tmp_path)
    (tmp_path / "a").touch()
    assert experiment.folder_sha256(tmp_path) == before
    (tmp_path / "a").write_bytes(b"x" * 4_999_999 + b"y")
    assert experiment.folder_sha256(tmp_path) != before


def test_the_schema_describes_every_key() -> None:
    schema = yaml.safe_load(SCHEMA.read_text())
    assert schema["additionalProperties"] is False

    def undescribed(part: Any, where: str) -> list[str]:
        found = []
        if isinstance(part, dict):
            for name, entry in (part.get("properties") or {}).items():
                if isinstance(entry, dict) and not ({"description", "$ref", "const"} & set(entry)):
                    found.append(f"{where}.{name}")
            for name, entry in part.items():
                if name != "if":
                    found += undescribed(entry, f"{where}.{name}")
        elif isinstance(part, list):
            for entry in part:
                found += undescribed(entry, where)
        return found

    assert undescribed(schema, "") == []


MADE: dict[str, dict[str, Any]] = {
    "none": {"method": "none"},
    "gguf": {"method": "gguf", "type": "Q8_0"},
    "llmcompressor": {**AWQ},
    "autoawq": {**AWQ, "method": "autoawq"},
    "lmdeploy": {"method": "lmdeploy"},
    "openvino": {"method": "openvino"},
    "mlc": {"method": "mlc", "type": "q4f16_1"},
    "modelopt": {"method": "modelopt", "type": "int4_awq"},
}
# Which backend serves what comes out of which method; every other pair is refused.
PAIRS = {
    "llamacpp": {"none", "gguf"},
    "openvino": {"none", "gguf", "openvino"},
    "vllm": {"none", "llmcompressor", "autoawq", "lmdeploy"},
    "sglang": {"none", "llmcompressor", "autoawq", "lmdeploy"},
    "lmdeploy": {"none", "llmcompressor", "autoawq", "lmdeploy"},
    "tgi": {"none", "llmcompressor", "autoawq", "lmdeploy"},
    "tensorrt_llm": {"none", "modelopt"},
    "mlc_llm": {"none", "mlc"},
    "transformers": {"none", "llmcompressor"},
}


@pytest.mark.parametrize("name", backends.names())
def test_a_backend_serves_these_methods_and_no_others(name: str) -> None:
    adapter = backends.load(name)
    config = copy.deepcopy(DEFAULT) | {
        "backends": [{"name": name, "runtime": "docker", "image": "i@sha256:" + "0" * 64}]
    }
    config["server"] |= {"device": sorted(adapter.DEVICES)[0]}
    for method, entry in MADE.items():
        config["quantizations"] = [entry | {"name": method}]
        if method in PAIRS[name]:
            assert experiment.load(copy.deepcopy(config)).served == {name: [method]}
            continue
        with pytest.raises(
            experiment.ConfigError,
            match=rf"{name} cannot serve the quantization '{method}' .* Name a quantization that it serves, or drop '{method}'",
        ):
            experiment.load(copy.deepcopy(config))


def test_a_quantization_is_typed_with_its_environment_and_seed() -> None:
    config = changed("quantizations.-", AWQ | {"group_size": 64})
    config["backends"] = [{"name": "vllm"}]
    made = experiment.load(config).quantizations["awq"]

    assert (made.layout, made.bits, made.group_size, made.symmetric, made.grid, made.seed) == (
        "compressed-tensors",
        4,
        64,
        False,
        20,
        DEFAULT["seed"],
    )
    assert made.environment
    assert (made.environment.lock, made.calibration and made.calibration.samples) == (
        "llmcompressor",
        128,
    )
    assert from_json(type(made), json.loads(to_json(made))) == made
    config["quantizations"][1] |= {"python": sys.executable, "seed": 3}
    own = experiment.load(config).quantizations["awq"]
    assert own.environment
    assert (own.environment.interpreter, own.seed) == (sys.executable, 3)


def test_random_weights_are_never_judged() -> None:
    config = changed(
        "models.-",
        {
            "name": "noise",
            "source": "random",
            "architecture": {"model_type": "llama", "vocab_size": 49152},
            "tokenizer": dict(DEFAULT["models"][0]),
        },
    )
    for name in ("name", "note", "licence"):
        config["models"][1]["tokenizer"].pop(name)
    judged = experiment.load(config).evaluated()

    assert {served.path for served in judged} == {
        f"smollm2-135m-instruct/none/{name}" for name in ("llamacpp", "openvino", "vllm")
    }
    assert experiment.load(changed("evaluation", {})).evaluated() == []
