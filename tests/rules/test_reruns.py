"""Edit -> exactly these jobs: the table of what reruns, on the real Snakefile with the paced backend."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import EXPERIMENT, Checkout

CELL = {"measure": 1, "evaluate": 1, "summarize": 1}
BOTH = {"measure": 2, "evaluate": 2, "summarize": 2, "report": 1}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Checkout:
    """A checkout with a whole run behind it."""
    folder = tmp_path_factory.mktemp("finished") / "checkout"
    folder.mkdir()
    made = Checkout(folder, tiny_model)
    shutil.rmtree(made.folder / "results")
    made.snakemake("report")
    return made


@pytest.fixture
def edited(finished: Checkout) -> Checkout:
    """The finished checkout, restored after the test: only sources are edited, and only dry runs follow."""
    keep = finished.folder.parent / "keep"
    for name in ("scripts", "report", "rules"):
        shutil.copytree(finished.folder / name, keep / name, dirs_exist_ok=True)
    yield finished
    for name in ("scripts", "report", "rules"):
        shutil.copytree(keep / name, finished.folder / name, dirs_exist_ok=True)
    finished.configure()
    shutil.rmtree(keep)


def replace(file: str, old: str, new: str) -> Callable[[Checkout], None]:
    def edit(checkout: Checkout) -> None:
        path = checkout.folder / file
        text = path.read_text()
        assert old in text, f"{file} has no {old!r} any more: mend this table"
        path.write_text(text.replace(old, new, 1))

    return edit


def append(file: str, text: str) -> Callable[[Checkout], None]:
    def edit(checkout: Checkout) -> None:
        with (checkout.folder / file).open("a") as sink:
            sink.write(text)

    return edit


def configure(**changes: object) -> Callable[[Checkout], None]:
    return lambda checkout: checkout.configure(**changes)


# Each of these reruns nothing, so all of them together must rerun nothing.
HARMLESS: list[Callable[[Checkout], None]] = [
    append("scripts/loadgen/client.py", "# a remark\n"),  # a comment in the load generator
    replace("scripts/measure.py", '"""Measure one cell', '"""Time one cell'),  # a docstring
    append("scripts/backends/vllm.py", "X = 1\n"),  # another backend's file
    append("scripts/servers/openvino_server.py", "X = 1\n"),  # another backend's server
    append("scripts/store.py", "X = 1\n"),  # the store's code
    append("rules/measure.smk", "# a remark\n"),  # a comment in a rule
    replace("rules/measure.smk", " --log {log:q}", "  --log {log:q}"),  # the layout of a command
    lambda checkout: (checkout.folder / "config.yaml").write_text("\n".join(reordered(checkout))),
]

TABLE: list[tuple[str, Callable[[Checkout], None], dict[str, int]]] = [
    ("the checks of the configuration", append("scripts/experiment.py", "X = 1\n"), {"report": 1}),
    ("this backend's file", append("scripts/backends/paced.py", "X = 1\n"), {"build": 1, **BOTH}),
    ("this backend's server", append("scripts/servers/paced_server.py", "X = 1\n"), {"build": 1, **BOTH}),
    ("the load generator", append("scripts/loadgen/client.py", "X = 1\n"), {"calibrate": 1, **BOTH}),
    ("its worker process", append("scripts/loadgen/worker.py", "X = 1\n"), {"calibrate": 1, **BOTH}),
    ("the server it is calibrated against", append("scripts/loadgen/null_server.py", "X = 1\n"), {"calibrate": 1, "summarize": 2, "report": 1}),
    ("the supervisor", append("scripts/runtime/supervise.py", "X = 1\n"), BOTH),
    ("a metric", append("scripts/metrics/cells.py", "X = 1\n"), {"summarize": 2, "report": 1}),
    ("how answers are judged", append("scripts/evaluate.py", "X = 1\n"), {"evaluate": 2, "summarize": 2, "report": 1}),
    ("the report's template", append("report/report.html.j2", "<!-- -->\n"), {"report": 1}),
    ("the report's style", append("report/style.css", "p { }\n"), {"report": 1}),
    ("the report's charts", append("report/charts.py", "X = 1\n"), {"report": 1}),
    ("a further concurrency", configure(concurrencies=[1, 2, 3]), {**CELL, "report": 1}),
    ("a request rate", configure(rates=[2]), {**CELL, "report": 1}),
    ("a concurrency less", configure(concurrencies=[1]), {"report": 1}),
    ("another seed", configure(seed=1), {"prompts": 1, **BOTH}),
    ("a further trial", configure(trials=2), {"measure": 2, "evaluate": 2, "summarize": 2, "report": 1}),
    ("an objective", configure(slo={"ttft_ms": 100}), {"summarize": 2, "report": 1}),
    ("a note on the model", configure(models=[{**EXPERIMENT["models"][0], "note": "hello"}]), {"report": 1}),
    ("a longer window", configure(load={**EXPERIMENT["load"], "window_s": 2}), BOTH),
    ("an option of the backend", configure(backends=[{"name": "paced", "options": {"tokens": 9}}]), {"build": 1, **BOTH}),
]


def reordered(checkout: Checkout) -> list[str]:
    """The configuration's top-level blocks, backwards."""
    blocks = re.findall(r"^\S.*\n(?:[ -].*\n)*", (checkout.folder / "config.yaml").read_text(), re.MULTILINE)
    return list(reversed(blocks))


# A dry run takes seconds. These rows are like their neighbours, and left to CI.
LEFT_TO_CI = {
    "its worker process",
    "the supervisor",
    "the report's style",
    "the report's charts",
    "a request rate",
    "a concurrency less",
    "another seed",
    "an objective",
    "a longer window",
}


@pytest.mark.parametrize(("edit", "jobs"), [pytest.param(edit, jobs, id=name, marks=[pytest.mark.slow] if name in LEFT_TO_CI else []) for name, edit, jobs in TABLE])
def test_an_edit_reruns_exactly_these_jobs(edited: Checkout, edit: Callable[[Checkout], None], jobs: dict[str, int]) -> None:
    edit(edited)

    assert edited.planned() == jobs


def test_harmless_edits_rerun_nothing(edited: Checkout) -> None:
    for edit in HARMLESS:
        edit(edited)

    assert edited.planned() == {}


def test_a_second_run_does_nothing(finished: Checkout) -> None:
    assert "Nothing to be done" in finished.snakemake("report")


def test_touching_every_file_reruns_nothing(finished: Checkout) -> None:
    for path in finished.folder.rglob("*"):
        if path.is_file() and ".snakemake" not in path.parts:
            os.utime(path)

    assert finished.planned() == {}


def test_an_interrupted_copy_of_the_results_is_measured_again(finished: Checkout) -> None:
    """Records that are gone or shorter than their manifest says are no measurement."""
    records = next((finished.folder / "results/measure").rglob("records.arrow"))
    whole = records.read_bytes()
    records.write_bytes(whole[:-1])
    try:
        said = finished.snakemake("--dry-run", "report")
        assert "its records are gone or have another length" in said
        assert re.search(r"^measure +1$", said, re.MULTILINE)
    finally:
        records.write_bytes(whole)
        next((finished.folder / "results/measure").rglob("*.again")).unlink()


def test_a_new_checkout_finds_what_the_store_holds(finished: Checkout, tmp_path: Path, tiny_model: Path) -> None:
    folder = tmp_path / "checkout"
    folder.mkdir()
    other = Checkout(folder, tiny_model)
    other.store = finished.store
    shutil.rmtree(folder / "tiny-model")
    (folder / "tiny-model").symlink_to(finished.folder / "tiny-model")
    other.configure(models=[{**EXPERIMENT["models"][0], "path": str(finished.folder / "tiny-model")}])

    said = other.snakemake("results/prompts/tiny/chat.json")

    assert len(re.findall(r"found in the store", said)) == 2


def test_lost_bytes_are_made_again_where_they_are_needed(finished: Checkout) -> None:
    """The prompts are gone from the store: nothing happens while the cells stand; a new cell has them made, for itself alone."""
    for path in (finished.store / "prompts").rglob("prompts.jsonl"):
        path.unlink()
    assert finished.planned() == {}

    finished.configure(concurrencies=[1, 2, 3])
    try:
        assert "prompts.jsonl is gone" in finished.snakemake("--dry-run", "report")
        assert finished.planned() == {"prompts": 1, **CELL, "report": 1}
    finally:
        finished.configure()
