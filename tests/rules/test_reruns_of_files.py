"""Which stages an edit of each file reruns: every file below scripts/ and report/ is edited, and the table is docs/reruns.md."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from config import experiment
from config.plan import STAGES, Plan
from conftest import ROOT

TABLE = ROOT / "docs" / "reruns.md"
# What is made, in the order of the pipeline; a session makes cells and answers to quality questions.
MADE = [
    part
    for stage in STAGES
    for part in (("cells", "questions") if stage == "measure" else (stage,))
]

SMOLLM2 = yaml.safe_load((ROOT / "config.yaml").read_text())["models"][0]
TEXTS = {"source": "file", "path": "prompts/heldout.jsonl", "columns": ["text"]}
PROMPTS = {"source": "file", "path": "prompts/showdown.jsonl"}
RANDOM = {
    "name": "random",
    "source": "random",
    "architecture": {"model_type": "llama", "vocab_size": 64},
    "tokenizer": {
        key: value for key, value in SMOLLM2.items() if key not in ("name", "licence", "note")
    },
}
CALIBRATION = {"prompts": PROMPTS}
BASE: dict[str, Any] = {
    "workloads": [
        {"name": "chat", "prompts": PROMPTS, "max_tokens": 8},
        {
            "name": "trace",
            "prompts": {"source": "trace", "path": "prompts/heldout.jsonl", "layout": "mooncake"},
            "max_tokens": 8,
        },
    ],
    "concurrencies": [1],
    "trials": 1,
    "load": {},
    "evaluation": {
        "text": TEXTS,
        "prompts": PROMPTS,
        "tasks": {"names": ["showdown_facts"], "path": "prompts/tasks"},
    },
}
# Two experiments that between them use every file: one on the CPU with processes, one on GPUs with containers.
EXPERIMENTS: list[dict[str, Any]] = [
    BASE
    | {
        "models": [SMOLLM2, RANDOM],
        "quantizations": [
            {"name": "none", "method": "none"},
            {"name": "q8", "method": "gguf", "type": "Q8_0"},
            {"name": "llmc", "method": "llmcompressor", "calibration": CALIBRATION},
            {"name": "autoawq", "method": "autoawq", "calibration": CALIBRATION},
            {"name": "ov", "method": "openvino"},
        ],
        "backends": [
            {"name": "llamacpp", "quantizations": ["none", "q8"]},
            {"name": "openvino", "quantizations": ["none", "ov"]},
            {"name": "vllm", "quantizations": ["none", "llmc", "autoawq"]},
            {"name": "transformers", "quantizations": ["none", "llmc"]},
        ],
        "server": {"max_sequences": 4},
    },
    BASE
    | {
        "models": [{"name": "hub", "source": "hub", "repo_id": "a/b", "revision": "0" * 40}],
        "quantizations": [
            {"name": "none", "method": "none"},
            {"name": "lmd", "method": "lmdeploy"},
        ],
        "backends": [
            {"name": "vllm", "runtime": "docker", "quantizations": ["none"]},
            {"name": "lmdeploy", "runtime": "docker"},
            {"name": "sglang", "runtime": "podman", "quantizations": ["none"]},
            {"name": "tgi", "runtime": "docker", "quantizations": ["none"]},
            {
                "name": "mlc_llm",
                "runtime": "docker",
                "quantizations": ["none"],
                "build_args": {"BASE": "x"},
            },
            {
                "name": "tensorrt_llm",
                "runtime": "apptainer",
                "quantizations": ["none"],
                "image": "x@sha256:0",
            },
        ],
        "workloads": [{**BASE["workloads"][0]}],
        "server": {"max_sequences": 4, "device": "gpu"},
    },
]


@cache
def experiments() -> list[experiment.Experiment]:
    def pin(_kind: str, _name: str, _revision: str) -> str:
        return f"sha256:{'0' * 64}"

    return [experiment.load(config, pin=pin) for config in EXPERIMENTS]


def keys_of(planned_ones: list[experiment.Experiment], scripts: Path) -> dict[tuple[str, str], str]:
    """The key of everything that these experiments make: (what, name) -> key."""
    found = {}
    for number, planned in enumerate(planned_ones):
        plan = Plan(planned, scripts)
        for (stage, name), job in plan.jobs.items():
            if stage != "measure":
                found[stage, f"{number}/{name}"] = job.key
                continue
            spec = json.loads(job.spec)
            found["cells", f"{number}/{name}"] = json.dumps([cell["key"] for cell in spec["cells"]])
            if spec["questions"]:
                found["questions", f"{number}/{name}"] = spec["questions"]["key"]
    return found


def told(before: dict[tuple[str, str], str], after: dict[tuple[str, str], str]) -> str:
    """What has another key now: a stage's name, with a star where only some of its jobs have."""
    parts = []
    for made in MADE:
        names = [name for what, name in before if what == made]
        moved = [name for name in names if before[made, name] != after[made, name]]
        parts += [f"{made}{'' if len(moved) == len(names) else '*'}"] if moved else []
    return ", ".join(parts) or "nothing"


def edited(file: Path) -> str:
    return (
        file.read_text()
        + {".py": "\nX_ADDED = 1\n", ".css": "\np { }\n", ".j2": "\n{# #}\n"}[file.suffix]
    )


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Every file and what an edit of it reruns."""
    folder = tmp_path_factory.mktemp("edited")
    for name in ("scripts", "report"):
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.png")
        )
    before, found = keys_of(experiments(), folder / "scripts"), {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        text = file.read_text()
        file.write_text(edited(file))
        found[str(file.relative_to(folder))] = told(
            before, keys_of(experiments(), folder / "scripts")
        )
        file.write_text(text)
    return found


def document(table: dict[str, str]) -> str:
    lines = [
        "# What an edit reruns",
        "",
        "A result's file carries in its name a key: the hash of its specification and of the code that makes it. A result",
        "whose key is not there is made; what rests on it has another key then, and is made as well. File times, comments,",
        "docstrings and layout count for nothing. `scripts/config/plan.py` says which folders count for which stage.",
        "",
        "| edit of the configuration | runs again |",
        "|---|---|",
        "| a concurrency, rate or workload added | each session starts its server once and measures what is new |",
        "| a trial added | its sessions |",
        "| a quantization's bits, seed or samples | that quantization, and the sessions that serve it |",
        "| `evaluation:` | the quality questions (one server start for each served model), no cell |",
        "| `slo:` | summaries, no server |",
        "| `envs/<name>.txt` | that environment, and the sessions or quantizations that run in it |",
        "| a container image, `server:`, another GPU for an engine | what was built for it, the sessions |",
        "| a model's revision | its download, and all that follows |",
        "| `load:`, `isolation:`, `seed:` | every cell (`seed`: prompts and texts as well) |",
        "| a note, a licence, the order of entries | the report |",
        "",
        "`tests/rules/test_reruns.py` tries these.",
        "",
        "## Every file of the code",
        "",
        "Written by `tests/rules/test_reruns_of_files.py`, which edits each file and compares the keys. A star: only those",
        "jobs that use the file. `cells` and `questions` are the two things that a session measures: when cells rerun,",
        "so do their summaries.",
        "",
        "| file | runs again |",
        "|---|---|",
        *(f"| `{file}` | {what} |" for file, what in table.items()),
    ]
    return "\n".join(lines) + "\n"


def test_the_table_of_reruns_is_what_docs_say(table: dict[str, str]) -> None:
    """Writes the page where it differs: look at the difference, and commit it."""
    said, true = TABLE.read_text() if TABLE.exists() else "", document(table)
    if said != true:
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(true)

    assert said == true, f"{TABLE} was not true of the code any more; it has been written anew"


HARMLESS = ("scripts/config/", "scripts/pipeline/", "scripts/models/", "scripts/host/")
PREPARING = {"environment", "download", "prompts", "texts", "quantize", "build", "reference"}


def stages(words: str) -> set[str]:
    return {word.rstrip("*") for word in words.split(", ")}


def test_what_is_said_of_the_folders_is_so(table: dict[str, str]) -> None:
    for file, what in table.items():
        if file.startswith(HARMLESS) or file == "scripts/pin.py":
            assert what == "nothing", file
        if file.startswith("scripts/runtime/") or file == "scripts/measure.py":
            assert not stages(what) & PREPARING, file
        if file.startswith("scripts/metrics/"):
            assert not stages(what) & {*PREPARING, "cells", "questions"}, file
        if file.startswith(("scripts/comparison/", "report/")):
            assert stages(what) == {"report"}, file
        if file.startswith("scripts/questions/"):
            assert (
                stages(what) == {"questions", "summarize", "assess", "report"} or "__init__" in file
            ), file
        if file.startswith("scripts/data/"):
            assert "download" not in stages(what), file
    assert stages(table["scripts/data/traces.py"]) & PREPARING == {"prompts"}
    assert table["scripts/runtime/process.py"].startswith("cells")
