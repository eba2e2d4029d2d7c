"""Results, manifests and locks that are cut, older or foreign: named and made again, or refused with the remedy."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import EXPERIMENT, Checkout

SESSION = "measure/tiny/none/paced/t1"


@pytest.fixture
def intact(finished: Checkout, tmp_path: Path) -> Iterator[Checkout]:
    """The finished checkout; its results and store are put back after a test has spoiled them."""
    places = (finished.folder / "results", finished.store)
    for place in places:
        shutil.copytree(place, tmp_path / place.name)
    yield finished
    for place in places:
        shutil.rmtree(place)
        shutil.copytree(tmp_path / place.name, place)
    finished.configure()


def only(folder: Path) -> Path:
    [path] = folder.glob("*.json")
    return path


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"key": 1}', "<<<<<<< HEAD", "[" * 10**5]
)
def test_a_session_that_cannot_be_read_is_named_and_made_again(
    intact: Checkout, content: str
) -> None:
    path = only(intact.folder / "results" / SESSION)
    path.write_text(content)

    said = intact.snakemake("--dry-run")

    assert f"{path.relative_to(intact.folder)}: will be made again" in said
    assert "measure" in said
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize("content", ["", "{", '{"key": "x"}', "[]"])
def test_a_cell_that_cannot_be_read_is_named_and_measured_again(
    intact: Checkout, content: str
) -> None:
    cell = intact.folder / "results" / SESSION / "chat/c1/cell.json"
    cell.write_text(content)

    intact.snakemake()

    assert json.loads(cell.read_text())["failure"] is None
    assert intact.planned() == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["manifest.json", "times.json"])
@pytest.mark.parametrize("content", ["", "{", '{"stage": "prompts"}', "[]"])
def test_a_store_entry_that_cannot_be_read_is_made_again(
    intact: Checkout, name: str, content: str
) -> None:
    for path in (intact.store / "prompts").rglob(name):
        path.write_text(content)
    only(intact.folder / "results/prompts/tiny/chat").unlink()
    intact.configure(concurrencies=[1, 2, 3])

    said = intact.snakemake("--until", "prompts")

    assert ("made again, since" in said) == (name == "manifest.json")
    assert "Traceback" not in said


def test_a_lock_with_merge_conflicts_is_refused_with_the_remedy(intact: Checkout) -> None:
    lock = intact.folder / "config.lock.yaml"
    lock.write_text("<<<<<<< HEAD\nmodel: {a@main: b}\n=======\nmodel: {a@main: c}\n>>>>>>> x\n")
    try:
        said = intact.snakemake("--dry-run", fails=True)
    finally:
        lock.unlink()

    assert "config.lock.yaml cannot be read as a lock file" in said
    assert "Resolve its merge conflict" in said
    assert "Traceback" not in said


def test_a_key_given_twice_stops_before_any_work(intact: Checkout) -> None:
    with (intact.folder / "config.yaml").open("a") as config:
        config.write("seed: 1\nseed: 2\n")

    said = intact.snakemake("--dry-run", fails=True)

    assert "config.yaml: seed: given twice" in said


@pytest.mark.slow
def test_a_system_prompt_beyond_the_limit_of_a_command_line_is_served(intact: Checkout) -> None:
    """25,000 Chinese characters are 150 kB of JSON: more than one argument can be."""
    workload = {**EXPERIMENT["workloads"][0], "name": "long", "system_prompt": "试" * 25_000}
    intact.configure(workloads=[workload], concurrencies=[1])

    intact.snakemake()

    cell = intact.cells()["tiny/none/paced/t1/long/c1"]
    assert cell["failure"] is None
    assert len(cell["spec"]["cell"]["workload"]["system_prompt"]) == 25_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoiled", "words"),
    [
        ("summarize/tiny/none/paced/t1/chat/c1/summary.json", "its key is 0000"),
        (SESSION, "its key is 0000"),
    ],
)
def test_the_report_refuses_what_is_not_the_plans(
    intact: Checkout, spoiled: str, words: str
) -> None:
    """The last line of defence: planning has been passed, and a result is another's all the same."""
    results = intact.folder / "results"
    page = results / "report.html"
    before = page.read_bytes()
    path = results / spoiled if spoiled.endswith(".json") else only(results / spoiled)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"key": "0" * 20}))
    spec = only(results / "specs/report/page")
    options = ["--spec", str(spec), "--log", "log", "--output", str(results / "report/page/x.json")]

    done = subprocess.run(
        [sys.executable, "scripts/report.py", *options],
        cwd=intact.folder,
        capture_output=True,
        text=True,
    )

    assert done.returncode != 0
    assert words in done.stderr
    assert str(path.relative_to(intact.folder)) in done.stderr
    assert "Remedy: rm " in done.stderr
    assert page.read_bytes() == before
