"""Nothing old under a new name: edits and kills at random, then one run, whose result is that of a fresh checkout.

SHOWDOWN_CASES says how many cases each test tries (10); SHOWDOWN_SEED the first seed (0). Each prints its seed.
"""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import EXPERIMENT, Checkout, until
from pipeline.results import NAME
from rules.test_kill import none_left

CASES, SEED = int(os.environ.get("SHOWDOWN_CASES", "10")), int(os.environ.get("SHOWDOWN_SEED", "0"))
LOAD = {**EXPERIMENT["load"], "warmup_requests": 0, "ramp_s": 0, "window_s": 0.4, "settle_s": 0}
# The plan of a checkout, as its own code makes it: the key of the page, of each cell, of each summary.
PLANNED = """
import json, sys
sys.path.insert(0, "scripts")
from pathlib import Path
import yaml
from config import experiment
from config.plan import Plan
plan = Plan(experiment.load(yaml.safe_load(open("config.yaml"))), Path("scripts").resolve())
report = plan.report()
print(json.dumps({"report": report.key, "summaries": json.loads(report.spec)["summaries"]}))
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Checkout:
    """A finished experiment to begin each case with."""
    folder = tmp_path_factory.mktemp("base") / "checkout"
    folder.mkdir()
    made = Checkout(folder, tiny_model)
    made.configure(load=LOAD)
    made.snakemake()
    return made


@pytest.fixture
def begun(base: Checkout, tmp_path: Path) -> Checkout:
    """A copy of the finished experiment; the store is shared, as it is between checkouts."""
    shutil.copytree(base.folder, tmp_path / "checkout", symlinks=True)
    copy = object.__new__(Checkout)
    copy.folder, copy.store = tmp_path / "checkout", base.store
    return copy


Edit = Callable[[Checkout, random.Random], None]


def change(**choices: list[Any]) -> Edit:
    """Set one key of the configuration to one of some values."""

    def edit(checkout: Checkout, chance: random.Random) -> None:
        path = checkout.folder / "config.yaml"
        [(key, values)] = choices.items()
        path.write_text(
            yaml.safe_dump(
                yaml.safe_load(path.read_text()) | {key: chance.choice(values)}, sort_keys=False
            )
        )

    return edit


def touch_code(*files: str) -> Edit:
    def edit(checkout: Checkout, chance: random.Random) -> None:
        path = checkout.folder / chance.choice(files)
        path.write_text(path.read_text() + f"\nX_{chance.randrange(10**6)} = 1\n")

    return edit


def lose(*patterns: str) -> Edit:
    """Remove, or cut, one of the results."""

    def edit(checkout: Checkout, chance: random.Random) -> None:
        found = sorted(
            path for pattern in patterns for path in (checkout.folder / "results").glob(pattern)
        )
        if not found:
            return
        path = chance.choice(found)
        if path.is_dir():
            shutil.rmtree(path)
        elif chance.random() < 0.5:
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return edit


def workload(tokens: int) -> dict[str, Any]:
    return {**EXPERIMENT["workloads"][0], "max_tokens": tokens}


TWO = [{"name": "paced"}, {"name": "other", "adapter": "paced"}]
EDITS: list[Edit] = [
    change(concurrencies=[[1], [2], [1, 2], [1, 2, 3], [3]]),
    change(trials=[1, 2]),
    change(seed=[1, 2, 3]),
    change(slo=[{}, {"ttft_ms": 1}, {"ttft_ms": 100}]),
    change(
        workloads=[[workload(4)], [workload(6)], [workload(8), {**workload(8), "name": "again"}]]
    ),
    change(backends=[[{"name": "paced", "options": {"tokens": tokens}}] for tokens in (4, 9)]),
    change(backends=[TWO, TWO[:1]]),
    change(load=[{**LOAD, "window_s": 0.3}, LOAD, {**LOAD, "warmup_requests": 1}]),
    change(isolation=["cell", "session"]),
    touch_code("scripts/metrics/cells.py", "scripts/metrics/windows.py", "scripts/summarize.py"),
    touch_code("scripts/runtime/process.py", "scripts/measure.py", "scripts/loadgen/drive.py"),
    touch_code("scripts/backends/paced.py", "scripts/foreign/paced_server.py"),
    touch_code(
        "scripts/data/sampling.py",
        "scripts/prompts.py",
        "report/view.py",
        "scripts/comparison/verdicts.py",
    ),
    touch_code("scripts/config/plan.py", "scripts/pipeline/store.py"),
    lose(
        "measure/*/*/*/*/*.json",
        "measure/*/*/*/*/*/*/cell.json",
        "measure/*/*/*/*/*/*/records.arrow",
    ),
    lose("summarize/*/*/*/*/*.json", "summarize/*/*/*/*/*/*/summary.json", "measure/*/*/*/*/*/c1"),
    lose(
        "download/*/*.json",
        "prompts/*/*/*.json",
        "build/*/*/*/*.json",
        "report/page/*.json",
        "report.html",
    ),
]


def kill(checkout: Checkout, run: subprocess.Popen[bytes], chance: random.Random) -> None:
    number = chance.choice([signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
    if chance.random() < 0.4:
        os.kill(run.pid, chance.choice([signal.SIGKILL, signal.SIGINT, number]))  # Snakemake alone
    else:
        os.killpg(run.pid, number)
    run.wait(120)


def fresh_plan(checkout: Checkout, folder: Path) -> dict[str, Any]:
    """What a fresh checkout with the same sources and configuration plans."""
    folder.mkdir()
    for name in ("scripts", "report", "rules", "envs", "prompts", "containers", "tiny-model"):
        shutil.copytree(
            checkout.folder / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(checkout.folder / "config.yaml", folder)
    done = subprocess.run(
        [sys.executable, "-c", PLANNED], cwd=folder, capture_output=True, text=True, check=True
    )
    planned: dict[str, Any] = json.loads(done.stdout)
    return planned


def assert_as_fresh(checkout: Checkout, folder: Path) -> None:
    """The page, the table and every cell on disk are those of the configuration and the sources as they are."""
    results = checkout.folder / "results"
    planned, config = (
        fresh_plan(checkout, folder),
        yaml.safe_load((checkout.folder / "config.yaml").read_text()),
    )
    [page] = [path.stem.split("-")[0] for path in (results / "report/page").glob("*.json")]
    assert page == planned["report"]
    expected = set()
    for session, cells in planned["summaries"].items():
        for load, keys in cells.items():
            cell = json.loads((results / "measure" / session / load / "cell.json").read_text())
            summary = json.loads(
                (results / "summarize" / session / load / "summary.json").read_text()
            )
            assert (cell["key"], summary["key"]) == (keys["cell"], keys["summary"]), (session, load)
            assert cell["failure"] is None, cell["failure"]
            assert summary["cell"]["clock"] == cell["clock"], (
                "the summary is that of this very measurement"
            )
            asked = {entry["name"]: entry for entry in config["workloads"]}[load.split("/")[0]]
            assert cell["spec"]["cell"]["workload"]["max_tokens"] == asked["max_tokens"]
            assert cell["spec"]["cell"]["load"]["window_s"] == config["load"]["window_s"]
            rate = f"{summary['metrics']['output_token_throughput']}"
            expected.add((*session.split("/"), *load.split("/"), rate))
    with (results / "summary.csv").open() as source:
        shown = {
            (
                *(row[name] for name in ("model", "quantization", "backend")),
                f"t{row['trial']}",
                row["workload"],
                f"c{row['value']}",
                row["output_token_throughput"],
            )
            for row in csv.DictReader(source)
        }
    assert shown == expected, "the table shows these measurements and no others"
    assert len(expected) == len(planned["summaries"]) * len(config["workloads"]) * len(
        config["concurrencies"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SEED, SEED + CASES))
def test_random_edits_and_kills_end_in_what_a_fresh_checkout_gives(
    begun: Checkout, tmp_path: Path, seed: int
) -> None:
    print("seed", seed)
    chance = random.Random(seed)
    for _ in range(chance.choice([1, 1, 2, 3])):
        for edit in chance.sample(EDITS, chance.choice([1, 1, 2, 3])):
            edit(begun, chance)
        run = begun.start()
        try:
            run.wait(chance.uniform(0.5, 12))
        except subprocess.TimeoutExpired:
            kill(begun, run, chance)
        begun.snakemake("--unlock")
    for edit in chance.sample(EDITS, chance.choice([0, 1])):
        edit(begun, chance)

    begun.snakemake()

    assert_as_fresh(begun, tmp_path / "fresh")
    assert begun.planned() == {}
    assert none_left(begun)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SEED, SEED + CASES))
def test_a_finished_experiment_edited_and_killed_while_it_measures_again(
    begun: Checkout, tmp_path: Path, seed: int
) -> None:
    """The next run used to show the old summary under the new settings, and to say 'Nothing to be done' for ever."""
    print("seed", seed)
    chance = random.Random(seed)
    old = (begun.folder / "results/report.html").read_text()
    change(load=[{**LOAD, "window_s": 1.5}])(begun, chance)
    change(workloads=[[workload(5)]])(begun, chance)
    cell = begun.folder / "results/measure/tiny/none/paced/t1"
    before = {path: path.stat().st_ino for path in cell.rglob("records.arrow*")}
    run = begun.start()
    until(
        lambda: (
            run.poll() is not None
            or any(path.stat().st_ino != before.get(path) for path in cell.rglob("records.arrow*"))
        )
    )
    try:
        run.wait(chance.uniform(0, 2))
    except subprocess.TimeoutExpired:
        kill(begun, run, chance)
    begun.snakemake("--unlock")

    begun.snakemake()

    assert (begun.folder / "results/report.html").read_text() != old
    assert_as_fresh(begun, tmp_path / "fresh")
    assert begun.planned() == {}


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["prompts", "build", "measure", "summarize"])
@pytest.mark.parametrize("first", [True, False])
def test_killed_between_a_result_and_snakemakes_note_of_it(
    begun: Checkout, tmp_path: Path, stage: str, first: bool
) -> None:
    """Snakemake took the result for incomplete then, made it again, and passed over all that was below it."""
    if first:
        shutil.rmtree(begun.folder / "results")
    change(seed=[7])(begun, random.Random(0))
    change(slo=[{"ttft_ms": 7}])(begun, random.Random(0))
    change(backends=[[{"name": "paced", "options": {"tokens": 5}}]])(begun, random.Random(0))
    place = begun.folder / "results" / stage
    before = set(place.rglob("*.json"))
    run = begun.start()
    until(lambda: any(NAME.fullmatch(path.name) for path in set(place.rglob("*.json")) - before))
    os.killpg(run.pid, signal.SIGKILL)
    run.wait(60)
    begun.snakemake("--unlock")

    begun.snakemake()

    assert_as_fresh(begun, tmp_path / "fresh")
    assert begun.planned() == {}


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["measure", "summarize"])
def test_interrupted_while_a_job_runs(begun: Checkout, tmp_path: Path, rule: str) -> None:
    """SIGINT to Snakemake alone, which waits for its jobs then."""
    change(slo=[{"ttft_ms": 7}])(begun, random.Random(0))
    change(concurrencies=[[1, 2, 3]])(begun, random.Random(0))
    run = begun.start()
    log = begun.folder / "run.log"
    until(
        lambda: f"{rule.capitalize().rstrip('e')}ing" in log.read_text() or run.poll() is not None
    )
    os.kill(run.pid, signal.SIGINT)
    run.wait(120)
    begun.snakemake("--unlock")

    begun.snakemake()

    assert_as_fresh(begun, tmp_path / "fresh")
    assert begun.planned() == {}
