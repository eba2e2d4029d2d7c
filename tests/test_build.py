"""Engines: what is refused, what steps leave, what a failing step says. The steps themselves are those of golden/ and of the stubs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import stages
from conftest import ROOT
from pipeline.artifact import Manifest
from pipeline.spec import Backend, Environment

ENVIRONMENT = Environment("e", "interpreter", interpreter=sys.executable)


def built(
    folder: Path, adapter: str, facts: dict[str, Any], builds: bool = False, program: str = ""
) -> dict[str, Any]:
    """Run build.py by hand, with a backend's file whose only step is `program` if there is one; gives the manifest."""
    scripts = ROOT / "scripts"
    if program:
        (folder / "overlay/backends").mkdir(parents=True)
        (folder / "overlay/backends/made.py").write_text(MADE.format(program=program))
    Manifest("quantize", "q", {}, "", str(folder), [], {"origin": "here", **facts}).save(
        folder / "weights.json"
    )
    Manifest(
        "environment",
        "e",
        {},
        "",
        str(folder),
        [],
        {"python": sys.executable, "packages": {}, "versions": {}},
    ).save(folder / "environment.json")
    server = {"context_length": 128, "max_sequences": 4, "dtype": "auto", "tensor_parallel": 1}
    spec = {
        "backend": asdict(Backend("b", adapter, ENVIRONMENT, builds=builds)),
        "quantization": {"method": "none"},
        "server": server,
        "trust_remote_code": False,
    }
    run = f"import sys; sys.path.insert(0, {str(scripts)!r}); import backends; backends.__path__.append({str(folder / 'overlay/backends')!r}); import build; build.main()"
    inputs = {name: folder / f"{name}.json" for name in ("weights", "environment")}
    command = [sys.executable, "-c", run, *stages.arguments(folder, "out", spec, **inputs)]
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        env={"SHOWDOWN_STORE": str(folder / "store"), "PATH": "/usr/bin:/bin", "HOME": str(folder)},
    )
    assert done.returncode == 0, done.stderr
    made: dict[str, Any] = json.loads((folder / "out.json").read_text())
    return made


MADE = """
from dataclasses import dataclass
from backends import Command
WEIGHTS, DEVICES, LAYOUTS, METHODS = ("hf",), frozenset({{"cpu"}}), frozenset(), frozenset()
@dataclass(frozen=True)
class Options: pass
def steps(build):
    return [Command([build.python, "-c", {program!r}, str(build.folder)], {{}})]
"""


def test_a_quantized_checkpoint_goes_only_to_backends_that_load_its_layout(tmp_path: Path) -> None:
    facts = {"hf": ".", "hf_form": "awq-quantized I32 safetensors", "layout": "awq"}

    assert built(tmp_path, "vllm", facts)["facts"]["hf"] == "."
    failure = built(tmp_path, "tensorrt_llm", facts)["failure"]
    assert failure["kind"] == "bad_model"
    assert (
        failure["reason"]
        == "tensorrt_llm cannot load checkpoints quantized as 'awq'; it loads unquantized ones alone."
    )


def test_steps_make_the_engine_and_its_manifest_says_what_it_took(tmp_path: Path) -> None:
    program = "import sys, pathlib, time; x = bytearray(80 << 20); time.sleep(0.8); pathlib.Path(sys.argv[1], 'rank0.engine').write_bytes(b'e' * 9)"
    made = built(tmp_path, "made", {"hf": ".", "hf_form": "F16 safetensors"}, True, program)

    assert made["failure"] is None
    assert [(file["path"], file["bytes"]) for file in made["files"]] == [("rank0.engine", 9)]
    assert made["facts"]["form"] == "made engine, F16 safetensors"
    assert made["peak_memory_bytes"] > 80 << 20
    assert made["duration_s"] >= 0.8


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("raise SystemExit('no kernel for this GPU')", "ended with exit code 1"),
        ("import os; os.kill(os.getpid(), 9)", "ended with exit code 137"),
    ],
)
def test_a_failing_step_leaves_nothing_and_its_last_words(
    tmp_path: Path, program: str, words: str
) -> None:
    made = built(tmp_path, "made", {"hf": ".", "hf_form": "F16 safetensors"}, True, program)

    assert made["failure"]["kind"] == "build_failed"
    assert words in made["failure"]["reason"]
    assert "no kernel" in made["failure"]["log_tail"] or "kill" in program
    assert not list((tmp_path / "store/build").rglob("data"))
