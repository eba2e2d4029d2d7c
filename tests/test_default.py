"""The default experiment as a newcomer runs it: three real servers, one real model. Minutes; the store may spare some."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import COPIED, ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("default")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, made / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, made / name)
    return made


def snakemake(folder: Path, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "snakemake", "--cores", "1", *arguments], cwd=folder, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_the_default_measures_three_real_backends(folder: Path) -> None:
    snakemake(folder, "report")
    with (folder / "results/summary.csv").open() as source:
        rows = list(csv.DictReader(source))

    assert [(row["backend"], row["outcome"]) for row in rows] == [(name, "measured") for name in ("llamacpp", "openvino", "vllm") for _ in range(2)], rows
    for row in rows:
        assert int(row["failed"]) == 0, row
        assert float(row["output_token_throughput"]) > 1
        assert 1 < float(row["ttft_p50_ms"]) < 60_000
        assert row["answers_broken"] == "False"
        assert float(row["in_flight"]) == pytest.approx(float(row["users"]), rel=0.1)
    assert len({row["output_token_throughput"] for row in rows}) == 6
    assert "Nothing to be done" in snakemake(folder, "report")
    page = (folder / "results/report.html").read_text()
    assert "dequantized" in page, "the report says what the weights are"


@pytest.mark.slow
def test_a_real_gguf_is_requantized_and_served(folder: Path) -> None:
    """Q8_0 made from the package's Q4_1, answered by llama.cpp."""
    (folder / "q8.yaml").write_text(
        "results: results-q8\nbackends: [{name: llamacpp}]\nquantizations: [{name: q8_0, method: gguf, type: Q8_0}]\nconcurrencies: [1]\nload: {ramp_s: 0, window_s: 10, warmup_requests: 1}\n"
    )
    snakemake(folder, "report", "--configfile", "q8.yaml")
    with (folder / "results-q8/summary.csv").open() as source:
        [row] = list(csv.DictReader(source))

    assert row["outcome"] == "measured"
    assert row["weights"] == "GGUF Q8_0, from GGUF Q4_1"
    assert row["answers_broken"] == "False"
