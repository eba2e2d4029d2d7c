"""The report in a real browser, and what it says of what was measured."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

import report
import view
from comparison import verdicts
from comparison.status import Status
from conftest import EXPERIMENT, Checkout

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Results of two backends, one of them unable to start, at two concurrencies."""
    folder = tmp_path_factory.mktemp("reported") / "checkout"
    folder.mkdir()
    checkout = Checkout(folder, tiny_model)
    checkout.configure(
        backends=[
            {"name": "paced"},
            {"name": "broken", "adapter": "paced", "options": {"fault": "no-start"}},
        ],
        models=[{**EXPERIMENT["models"][0], "note": "Weights of <no> use."}],
        load={**EXPERIMENT["load"], "window_s": 5.1},
        slo={"ttft_ms": 1000},
    )
    checkout.snakemake()
    return folder / "results"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: the report was not opened in a browser")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_charts_are_drawn_and_nothing_leaves_the_page(
    reported: Path, browser: Browser, scheme: Any, width: int
) -> None:
    page = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme
    ).new_page()
    complaints: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    address = (reported / "report.html").as_uri()

    page.goto(address)
    page.wait_for_selector("body[data-drawn]")

    charts = page.locator(".chart")
    assert charts.count() == 2 + 3 * 2
    for number in range(charts.count()):
        assert charts.nth(number).locator("svg path").count() > 3
    assert complaints == []
    assert [url for url in asked if not url.startswith("data:")] == [address]
    assert page.evaluate("document.documentElement.scrollWidth") <= width, (
        "no sideways scrolling of the page"
    )


def test_without_scripts_the_charts_are_pictures(reported: Path, browser: Browser) -> None:
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto((reported / "report.html").as_uri())

    pictures = page.locator(".chart img")
    assert pictures.count() == 8
    assert all(pictures.nth(number).bounding_box()["height"] > 100 for number in range(8))


def test_the_page_says_what_happened(reported: Path, browser: Browser) -> None:
    page = browser.new_page()
    page.goto((reported / "report.html").as_uri())
    text = page.inner_text("body")

    assert "server_died" in text
    assert "cannot start, as asked" in text
    assert "Weights of <no> use." in text
    assert "snakemake --cores 1" in text
    assert "showdown.jsonl" in text
    assert "Were the servers set up alike?" in text
    assert "The servers' CPU each 5 s" in text
    assert "With 2 users: most tokens from paced" in text


def test_the_table_holds_every_cell(reported: Path) -> None:
    with (reported / "summary.csv").open() as source:
        rows = list(csv.DictReader(source))

    assert [(row["backend"], row["value"], row["outcome"]) for row in rows] == [
        ("paced", "1", "measured"),
        ("paced", "2", "measured"),
        ("broken", "1", "server_died"),
        ("broken", "2", "server_died"),
    ]
    assert float(rows[1]["output_token_throughput"]) > float(rows[0]["output_token_throughput"]) > 0
    assert float(rows[0]["ttft_p50_ms"]) >= 30, "the first token comes after 30 ms"
    assert rows[2]["output_token_throughput"] == ""


def test_the_markdown_has_the_same_rows(reported: Path) -> None:
    said = (reported / "report.md").read_text()

    assert said.count("| paced |") == 3, "two cells and the starts"
    assert "measure/" not in said
    assert "server_died" in said


def entry(backend: str, value: float, low: float | None, high: float | None) -> dict[str, Any]:
    return {"backend": backend, "offered": 2, "value": value, "low": low, "high": high}


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([entry("a", 10, 9, 11), entry("b", 20, 19, 21)], "b"),
        ([entry("a", 10, 9, 11), entry("b", 10.5, 9.5, 11.5)], "b (not distinguishable from a)"),
        (
            [entry("a", 10, 9, 11), entry("b", 20, None, None)],
            "b (too few samples for an interval)",
        ),
        ([entry("a", 10, None, None), entry("b", 20, 19, 21)], "b (not distinguishable from a)"),
        ([], ""),
    ],
)
def test_a_winner_is_named_with_those_it_cannot_be_told_from(entries: Any, said: str) -> None:
    assert verdicts.leaders(entries, best=max) == said


def row(backend: str, rate: float, ttft: float | None, trial: int = 1) -> dict[str, Any]:
    metrics = {
        "output_token_throughput": rate,
        "output_token_throughput_interval": [rate - 1, rate + 1],
        "ttft": {"p50": ttft, "p50_interval": None},
        "client": {"valid": True},
    }
    return {
        "backend": backend,
        "value": 2,
        "load": "2 users",
        "trial": trial,
        "metrics": metrics,
        "evaluation": {"broken": False},
        "quality": None,
        "status": Status("not judged"),
    }


def test_one_trial_has_the_interval_of_its_run() -> None:
    assert verdicts.estimates([row("a", 10, 5)], "rate") == [entry("a", 10, 9, 11)]
    assert verdicts.estimates([row("a", 10, None)], "ttft") == []


def test_several_trials_have_the_interval_between_them() -> None:
    [found] = verdicts.estimates(
        [row("a", rate, 5, trial) for trial, rate in enumerate((11.0, 12.0, 13.0), 1)], "rate"
    )

    # Student, n = 3: 12 -+ 4.3027 / sqrt(3)
    assert (found["value"], found["low"], found["high"]) == pytest.approx(
        (12, 9.516, 14.484), abs=1e-3
    )
    assert verdicts.estimates([row("a", rate, 5) for rate in (11.0, 13.0)], "rate") == [
        entry("a", 12, None, None)
    ]


def test_one_backend_alone_wins_nothing() -> None:
    assert verdicts.verdicts([row("a", 10, 5)]) == []
    assert len(verdicts.verdicts([row("a", 10, 5), row("b", 20, 4)])) == 1


def test_a_cell_whose_answers_are_broken_cannot_win() -> None:
    broken = row("b", 99, 1)
    broken["evaluation"]["broken"] = True

    assert verdicts.verdicts([row("a", 10, 5), broken]) == [
        "With 2 users: most tokens from a; shortest time to first token from a (too few samples for an interval)."
    ]


def test_json_cannot_end_its_script_element() -> None:
    assert "</script>" not in report.script_json({"a": "</script><script>alert(1)"})


def cell_of(trial: int, load: str, unix_s: float, number: int = 1) -> dict[str, Any]:
    """A row of a cell that took 10 s."""
    start = {"number": number}
    cell = {"clock": {"unix_ns": int(unix_s * 1e9)}, "seconds": 10, "start": start}
    names = {"model": "m", "quantization": "none", "backend": "a", "workload": "chat"}
    return {**names, "trial": trial, "load": load, "cell": cell}


def test_trials_that_follow_each_other_are_in_order() -> None:
    rows = [cell_of(1, "2 users", 0), cell_of(2, "2 users", 10), cell_of(3, "2 users", 20)]

    assert view.disorder(rows) == []
    assert [start["trial"] for start in view.order_of(rows)] == [1, 2, 3]


def test_a_load_added_later_is_in_order_of_its_own() -> None:
    rows = [cell_of(1, "2 users", 0), cell_of(2, "2 users", 10)]
    rows += [cell_of(1, "8 users", 100, 2), cell_of(2, "8 users", 110, 2)]

    assert view.disorder(rows) == []
    assert len(view.order_of(rows)) == 4


def test_cells_that_began_too_early_are_told_in_one_line_a_load_and_trial() -> None:
    rows = [cell_of(1, "2 users", 0), cell_of(2, "2 users", 9), cell_of(2, "2 users", 9.5)]

    [line] = view.disorder(rows)
    assert "chat, 2 users: 2 cells began in trial 2" in line
