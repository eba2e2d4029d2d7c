"""The workflow's own hygiene: formatted, linted, every stage under one name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from config.plan import STAGES
from conftest import ROOT

# The product brings its own environments and containers (scripts/environment.py, scripts/runtime), so Snakemake's are not used.
WAIVED = ("Specify a conda environment or container for each rule.",)


def test_snakefmt_is_clean() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "snakefmt.snakefmt", "--check", "Snakefile", "rules"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr


def test_lint_is_clean_but_for_what_is_waived() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--lint", "json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    findings = json.loads(done.stdout[done.stdout.index("{") :]) if "{" in done.stdout else {}

    left = [
        f"{rule['for'].get('name')}: {finding['title']}"
        for part in findings.values()
        for rule in part
        for finding in (rule.get("lints") or [])
        if finding["title"] not in WAIVED
    ]
    assert left == []


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_has_one_name(stage: str) -> None:
    rules = "".join(path.read_text() for path in (ROOT / "rules").glob("*.smk"))

    assert f"rule {stage}:" in rules
    assert (ROOT / "scripts" / f"{stage}.py").is_file()
    assert f'python "$scripts"/{stage}.py' in rules


def test_scripts_holds_commands_alone() -> None:
    commands = {path.stem for path in (ROOT / "scripts").glob("*.py")}

    assert commands == {*STAGES, "pin"}


def test_locks_carry_hashes_and_no_addresses() -> None:
    for lock in [*(ROOT / "envs").glob("*.txt"), *(ROOT / "benchmarks").rglob("*.txt")]:
        if lock.name.endswith(".overrides.txt"):
            continue
        text = lock.read_text()
        packages = [
            line for line in text.splitlines() if "==" in line and not line.lstrip().startswith("#")
        ]
        assert packages, lock
        assert all(line.rstrip().endswith("\\") for line in packages), (
            f"{lock}: a package without a hash"
        )
        assert "://" not in text, lock
        assert lock.with_suffix(".in").is_file()


def test_rules_stay_short() -> None:
    for path in (ROOT / "rules").glob("*.smk"):
        assert len(path.read_text().splitlines()) < 140, path


def test_no_path_of_a_machine_is_in_the_repository() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split("\0")
    named = [
        name
        for name in tracked
        if name
        and Path(ROOT, name).suffix
        in (".py", ".smk", ".yaml", ".md", ".toml", ".txt", ".in", ".j2", "")
        and Path(ROOT, name).is_file()
    ]
    words = ["/" + "work/", "/" + "root/", "pypi" + ".org", "python" + "hosted"]
    assert [
        (name, word) for name in named for word in words if word in Path(ROOT, name).read_text()
    ] == []
