"""The study's own matrix is planned, job by job, by a dry run that reaches neither hub nor registry."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import copy_product


@pytest.mark.parametrize(
    ("files", "jobs"),
    [
        (
            ["llama3-2024"],
            {
                "download": 3,
                "prompts": 6,
                "quantize": 4,
                "environment": 6,
                "build": 10,
                "measure": 10,
                "summarize": 10,
                "texts": 3,
                "reference": 3,
                "assess": 10,
            },
        ),
        pytest.param(
            ["llama3-2024", "llama3-2024-images"],
            {
                "download": 2,
                "prompts": 4,
                "quantize": 2,
                "environment": 4,
                "build": 6,
                "measure": 6,
                "reference": 2,
                "assess": 6,
            },
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_dry_run_plans_the_whole_study(
    tmp_path: Path, files: list[str], jobs: dict[str, int]
) -> None:
    copy_product(tmp_path)
    surroundings = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "DOCKER_HOST": f"unix://{tmp_path}/none.sock",
        "SHOWDOWN_STORE": str(tmp_path / "store"),
    }
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "-n",
        "--cores",
        "8",
        "--configfile",
        *(f"experiments/{file}.yaml" for file in files),
    ]
    done = subprocess.run(command, cwd=tmp_path, env=surroundings, capture_output=True, text=True)
    said = done.stdout + done.stderr

    assert done.returncode == 0, said[-3000:]
    assert {
        name: int(count)
        for name, count in re.findall(r"^(\w+) +(\d+)$", said, re.MULTILINE)
        if name in jobs
    } == jobs
    assert (
        "model meta-llama/Meta-Llama-3-8B-Instruct: 'main' is not resolved in this dry run" in said
    )
    assert "image vllm/vllm-openai: 'v0." in said
    assert not list(tmp_path.glob("experiments/*.lock.yaml"))
