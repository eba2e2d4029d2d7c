"""The planning benchmark runs, and takes a finished run for one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from conftest import ROOT


@pytest.mark.slow
def test_planning_is_timed_with_and_without_results() -> None:
    program = ROOT / "benchmarks/planning/plan.py"
    sizes = ["--served", "3", "--trials", "2", "--loads", "2"]
    done = subprocess.run([sys.executable, program, *sizes], capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["cells"], found["sessions"]) == (12, 6)
    assert 0 < found["nothing"]["memory_mb"] <= found["plan"]["memory_mb"] * 1.2
