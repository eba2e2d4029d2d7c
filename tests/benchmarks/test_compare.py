"""The comparison of load generators: its truth is true, and its table says what was measured."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from conftest import ROOT

COMPARE = ROOT / "benchmarks/loadgen/compare.py"


@pytest.fixture(scope="module")
def compare() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compare", COMPARE)
    assert spec and spec.loader
    made = importlib.util.module_from_spec(spec)
    sys.modules["compare"] = made
    spec.loader.exec_module(made)
    return made


def run(client: str, rate: float, p99: float) -> dict[str, Any]:
    truth = {
        "ttft_ms": {"p50": 200.1, "p99": 201.0},
        "gap_ms": {"p50": 20.0, "p99": 20.5},
        "late_ms": {"p50": 0.1, "p99": 0.7, "max": 3.0},
        "cores": 0.05,
    }
    return {
        "client": client,
        "streams": 100,
        "tokens_per_s": rate,
        "offered_tokens_per_s": 100 * 200 / 4.18,
        "ttft_ms": {"p50": 202.0, "p99": p99},
        "gap_ms": {"p50": 20.0, "p99": 21.0},
        "cpu_cores": 0.1,
        "truth": truth,
    }


def test_the_table_has_the_median_with_the_least_and_the_largest(compare: ModuleType) -> None:
    said = compare.table([run("ours", 4700, 204), run("ours", 4780, 203), run("ours", 4790, 209)])

    # 100 streams x 200 tokens each 4.18 s are 4,784.7 tokens/s
    assert "| 100 | ours | 4,780 [4,700, 4,790] | 99.9 % | 202.0 | 204.0 [203.0, 209.0] |" in said
    assert "200.1 / 201.0, 20.50, 0.70; 0.05" in said


def test_the_chart_is_drawn(compare: ModuleType) -> None:
    assert compare.chart([run("floor", 4780, 202), run("ours", 4770, 204)]).startswith("<svg")


@pytest.mark.slow
def test_the_floor_and_ours_find_what_the_server_says_it_did(tmp_path: Path) -> None:
    """By one command, at few streams; the bounds leave room for a busy machine."""
    if not shutil.which("gcc"):
        pytest.skip("no C compiler on this machine: the paced server was not built")
    done = subprocess.run(
        [
            sys.executable,
            str(COMPARE),
            "--streams",
            "50",
            "--repeats",
            "1",
            "--clients",
            "floor",
            "ours",
            "--output",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "| 50 | ours |" in done.stdout
    assert (tmp_path / "results.svg").read_text().startswith("<svg")
    for found in json.loads((tmp_path / "results.json").read_text())["runs"]:
        truth = found["truth"]
        assert truth["requests"] >= 150
        assert truth["ttft_ms"]["p50"] == pytest.approx(200, rel=0.02), (
            "the server keeps its own time"
        )
        assert found["tokens_per_s"] > 0.98 * 50 * 200 / 4.18
        assert found["ttft_ms"]["p50"] == pytest.approx(truth["ttft_ms"]["p50"], rel=0.06)
        assert found["gap_ms"]["p50"] == pytest.approx(20, rel=0.02)
