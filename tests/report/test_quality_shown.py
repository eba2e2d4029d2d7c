"""Speed beside quality on the page: two quantizations of one backend, whose qualities are made up here."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser
from test_report import browser  # noqa: F401 -- a fixture

from assess import FIGURES
from conftest import EXPERIMENT, Checkout

# Renders with the checkout's own scripts, with qualities that nobody measured.
RENDER = """
import json, sys
sys.path.insert(0, "scripts")
sys.path.insert(0, "report")
import report, view, yaml
from config import experiment
from pathlib import Path
planned = experiment.load(yaml.safe_load(open("config.yaml")))
found = Path("results")
results = {"summarize": {f"{served.path}/t1": found / "summarize" / served.path / "t1/x.json" for served in planned.all_served()}}
results["assess"] = {served.path: found / "made-up" / f"{served.backend.name}.json" for served in planned.evaluated()}
rows = view.rows_of(results, planned)
[calibration] = (found / "calibrate/client").glob("*.json")
facts = {"calibration": json.loads(calibration.read_text()), "config_files": ["config.yaml"], "prepared": []}
report.render(rows, planned, facts, found / "report.html")
"""
EVALUATION = {
    "text": {"source": "file", "path": "prompts/heldout.jsonl", "columns": ["text"]},
    "tasks": {"names": ["showdown_facts"], "path": "prompts/tasks"},
}


def quality(percent: float, **more: Any) -> dict[str, Any]:
    perplexity = {
        "value": 20 * (1 + percent / 100),
        "interval": [19.0, 30.0],
        "tokens": 100,
        "passages": 4,
    }
    agreed = {
        "answers": 12,
        "identical": 9,
        "identical_interval": [0.47, 0.91],
        "prefix_mean": 25.5,
        "prefix_interval": [20.0, 31.0],
        "prefix_min": 3,
        "prefix_median": 32,
    }
    told = {
        "perplexity": perplexity,
        "perplexity_change": {"percent": percent, "interval": [percent - 1, percent + 1]},
        "reference_perplexity": perplexity,
        "agreement": agreed,
    }
    return (
        dict.fromkeys(FIGURES) | {"failure": None, "no_reference": None, "damaged": 0} | told | more
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("judged") / "checkout"
    folder.mkdir()
    checkout = Checkout(folder, tiny_model)
    names = ["good", "worse", "dead", "quiet", "nan"]
    changes: dict[str, Any] = {
        "backends": [{"name": name, "adapter": "paced"} for name in names],
        "concurrencies": [2],
        "load": {**EXPERIMENT["load"], "window_s": 5.1},
    }
    checkout.configure(**changes)
    checkout.snakemake()
    checkout.configure(**changes, evaluation=EVALUATION)
    task = {"showdown_facts": {"items": 40, "acc,none": 0.675, "acc_stderr,none": 0.075}}
    example = {"reference": "the cat sat", "served": "the <b>dog</b> sat", "parts_at": 1}
    told = {
        "good": quality(0.4, tasks=task),
        "worse": quality(26.0, example=example),
        "dead": dict.fromkeys(FIGURES)
        | {"failure": {"kind": "server_died", "reason": "It fell."}, "no_reference": None},
        "quiet": quality(0, perplexity=None, perplexity_change=None),
        "nan": quality(0, perplexity=None, perplexity_change=None, damaged=3),
    }
    for name, entry in told.items():
        path = folder / f"results/made-up/{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(entry))
    subprocess.run([sys.executable, "-c", RENDER], cwd=folder, check=True)
    return folder / "results"


@pytest.mark.slow
def test_the_table_says_which_rows_can_be_compared(results: Path) -> None:
    with (results / "summary.csv").open() as source:
        rows = {row["backend"]: row for row in csv.DictReader(source)}

    assert {name: row["comparable"] for name, row in rows.items()} == {
        "good": "True",
        "worse": "False",
        "dead": "",
        "quiet": "True",
        "nan": "False",
    }
    assert float(rows["worse"]["perplexity_change_percent"]) == 26
    assert (
        float(rows["worse"]["perplexity_change_percent_low"]),
        float(rows["worse"]["perplexity_change_percent_high"]),
    ) == (25, 27)
    assert (
        rows["good"]["answers_identical"],
        rows["good"]["answers_compared"],
        rows["quiet"]["perplexity"],
    ) == ("9", "12", "")


@pytest.mark.slow
def test_the_page_shows_speed_and_quality_in_one_row(results: Path, browser: Browser) -> None:  # noqa: F811
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto((results / "report.html").as_uri())
    page.wait_for_selector("body[data-drawn]")
    lines = [row.inner_text() for row in page.locator("table").first.locator("tbody tr").all()]

    assert len(lines) == 5
    assert "not comparable" in lines[4]
    assert "3 tokens a probability that is not a finite number" in lines[4]
    assert "comparable" in lines[0]
    assert "+0.4" in lines[0]
    assert "9 of 12" in lines[0]
    assert "acc 0.68 ± 0.07" in lines[0] or "acc 0.68 ± 0.08" in lines[0]
    assert "showdown_facts, 40 items" in lines[0]
    assert "not comparable" in lines[1]
    assert "26 % higher" in lines[1]
    assert "server_died" in lines[2]
    assert "not told" in lines[3]
    assert page.locator(".chart").first.locator("svg path").count() > 3
    assert complaints == []
    verdicts = page.locator(".verdict").all_inner_texts()
    for name in ("worse", "nan"):
        assert name not in verdicts[0], "what is not comparable is neither winner nor its neighbour"
    page.get_by_text("the greedy answer that parts first").click()
    assert "the <b>dog</b> sat" in page.inner_text("body"), "what a model says is text, not markup"


@pytest.mark.slow
def test_the_markdown_has_the_same_figures(results: Path) -> None:
    said = (results / "report.md").read_text()

    assert "speed, and what is left of the model" in said
    assert "| +26.0 [+25.0, +27.0] | 9 of 12 | 25.5 | **not comparable** |" in said
    assert "**server_died**" in said
