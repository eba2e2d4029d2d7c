"""Which stages an edit of the configuration, of a lock or of the machine reruns, by the keys of two whole experiments."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from config import experiment, paths
from config import plan as planning
from conftest import ROOT
from rules.test_reruns_of_files import EXPERIMENTS, keys_of, stages, told

CPU, GPU = 0, 1
DIGEST = f"sha256:{'0' * 64}"
Edit = Callable[[dict[str, Any]], None]
SESSION = {"cells", "questions", "summarize", "assess", "report"}


def found(config: dict[str, Any], digest: str = DIGEST) -> dict[tuple[str, str], str]:
    planned = experiment.load(copy.deepcopy(config), pin=lambda kind, name, revision: digest)
    return keys_of([planned], ROOT / "scripts")


def moved(number: int, edit: Edit) -> str:
    """What an edit of one of the experiments reruns, as docs/reruns.md says it."""
    config = copy.deepcopy(EXPERIMENTS[number])
    before = found(config)
    edit(config)
    return told(before, found(config))


def entry(axis: str, name: str, **changes: Any) -> Edit:
    def edit(config: dict[str, Any]) -> None:
        [one] = [one for one in config[axis] if one["name"] == name]
        one |= changes

    return edit


def top(**changes: Any) -> Edit:
    return lambda config: config.update(changes)


@pytest.mark.parametrize(
    ("number", "edit", "made"),
    [
        (CPU, entry("quantizations", "llmc", group_size=64), {"quantize", "build", *SESSION}),
        (CPU, entry("quantizations", "ov", bits=8), {"quantize", "build", *SESSION}),
        (CPU, entry("quantizations", "llmc", seed=7), {"texts", "quantize", "build", *SESSION}),
        (CPU, entry("quantizations", "q8", type="Q4_0"), {"quantize", "build", *SESSION}),
        (CPU, top(slo={"ttft_ms": 1}), {"summarize", "report"}),
        (CPU, top(isolation="cell"), {"cells", "summarize", "report"}),
        (CPU, top(load={"window_s": 7}), {"cells", "summarize", "report"}),
        (CPU, top(seed=7), {"prompts", "texts", "quantize", "build", "reference", *SESSION}),
        (CPU, top(calibration={"step_s": 1}), {"calibrate", "summarize", "report"}),
        (CPU, top(server={"max_sequences": 4, "context_length": 512}), {"build", *SESSION}),
        (GPU, entry("models", "hub", revision="1" * 40), {"download", "prompts", "texts", "quantize", "build", "reference", *SESSION}),
        (GPU, entry("backends", "tgi", image=f"other@{DIGEST}"), {"environment", "build", *SESSION}),
        (GPU, entry("backends", "vllm", args=["--x"]), SESSION),
        (CPU, top(server={"max_sequences": 4, "start_timeout_s": 7}), {"summarize", "report"}),
    ],
)  # fmt: skip
def test_an_edit_of_a_setting_reruns_these_stages(number: int, edit: Edit, made: set[str]) -> None:
    assert stages(moved(number, edit)) == made


def test_a_quantization_reruns_only_what_is_served_in_it() -> None:
    config = copy.deepcopy(EXPERIMENTS[CPU])
    before = found(config)
    entry("quantizations", "llmc", group_size=64)(config)
    after = found(config)

    names = {name for (_, name), key in before.items() if after[_, name] != key}
    assert all("llmc" in name or name in ("0/page", "page") for name in names), names


def test_another_digest_behind_a_tag_is_another_image() -> None:
    before, after = (found(EXPERIMENTS[GPU], f"sha256:{digit * 64}") for digit in "01")

    assert "environment" in stages(told(before, after))
    assert "cells" in stages(told(before, after))


def test_a_gpu_is_part_of_an_engine_that_is_built_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = found(EXPERIMENTS[GPU])
    monkeypatch.setattr(planning, "gpu_kind", lambda: {"name": "other", "compute_capability": "9"})
    after = found(EXPERIMENTS[GPU])

    builds = {
        name for (what, name), key in before.items() if after[what, name] != key and what == "build"
    }
    assert {name.rsplit("/", 1)[1] for name in builds} == {"mlc_llm", "tensorrt_llm"}


LOCKS = {
    "llamacpp": {"environment", "build", *SESSION},
    "vllm": {
        "environment",
        "download",
        "prompts",
        "texts",
        "quantize",
        "build",
        "reference",
        *SESSION,
    },
    "openvino": {"environment", "build", *SESSION},
    "transformers": {"environment", "build", *SESSION},
    "llmcompressor": {"environment", "quantize", "build", *SESSION},
    "autoawq": {"environment", "quantize", "build", *SESSION},
    "openvino_export": {"environment", "quantize", "build", *SESSION},
    "lm_eval": {"environment", "questions", "summarize", "assess", "report"},
}


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_reruns_what_runs_in_its_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    before = found(EXPERIMENTS[CPU])
    for folder in ("envs", "prompts", "containers"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    with (tmp_path / f"envs/{name}.txt").open("a") as lock:
        lock.write("# a remark\n")
    monkeypatch.setattr(experiment, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    after = found(EXPERIMENTS[CPU])

    changed = {place for place, key in before.items() if after[place] != key}
    assert {what for what, _ in changed} <= LOCKS[name]
    assert {what for what, _ in changed} >= {"environment", "questions", "report"}
    if name == "llamacpp":
        assert all(name in place or "page" in place for _, place in changed), changed


def test_a_moved_file_or_folder_of_the_same_content_reruns_nothing(tmp_path: Path) -> None:
    """Where files lie is in no key: their hashes are."""
    config = copy.deepcopy(EXPERIMENTS[CPU])
    before = found(config)
    shutil.copy(ROOT / "prompts/showdown.jsonl", tmp_path / "showdown.jsonl")
    config["workloads"][0]["prompts"] = {"source": "file", "path": str(tmp_path / "showdown.jsonl")}

    assert stages(told(before, found(config))) == {"report"}
