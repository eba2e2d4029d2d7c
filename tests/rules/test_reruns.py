"""Edit -> exactly these jobs: the table of what reruns, on the real Snakefile with the paced backend."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import EXPERIMENT, Checkout

SESSION = {"measure": 1, "summarize": 1, "report": 1}


@pytest.fixture
def edited(finished: Checkout) -> Checkout:
    """The finished checkout, restored after the test: only sources are edited, and only dry runs follow."""
    keep = finished.folder.parent / "keep"
    for name in ("scripts", "report", "rules", "tiny-model"):
        shutil.copytree(finished.folder / name, keep / name, dirs_exist_ok=True)
    yield finished
    for name in ("scripts", "report", "rules", "tiny-model"):
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


PROMPTS = {"source": "file", "path": "prompts/showdown.jsonl", "count": 2}
OTHER = {**EXPERIMENT["workloads"][0], "name": "other", "max_tokens": 4}
OPTION = {"name": "paced", "options": {"tokens": 9}}
# A reference needs the environment that converts models: one more job than what is asked and judged.
JUDGED = {"environment": 1, "texts": 1, "reference": 1, "assess": 1, **SESSION}
EVERYTHING = {"download": 1, "prompts": 1, "quantize": 1, "build": 1, **SESSION}

# Each of these reruns nothing, so all of them together must rerun nothing.
HARMLESS: list[Callable[[Checkout], None]] = [
    append("scripts/loadgen/client.py", "# a remark\n"),  # a comment in the load generator
    replace("scripts/measure.py", '"""Measure one session', '"""Time one session'),  # a docstring
    append("scripts/backends/vllm.py", "X = 1\n"),  # another backend's file
    append("scripts/foreign/openvino_server.py", "X = 1\n"),  # another backend's server
    append("scripts/pipeline/store.py", "X = 1\n"),  # the store's code
    append("scripts/config/checks.py", "X = 1\n"),  # the checks of the configuration
    append("rules/measure.smk", "# a remark\n"),  # a comment in a rule
    replace("rules/measure.smk", " --log {log:q}", "  --log {log:q}"),  # the layout of a command
]

TABLE: list[tuple[str, Callable[[Checkout], None], dict[str, int]]] = [
    (
        "this backend's file",
        append("scripts/backends/paced.py", "X = 1\n"),
        {"build": 1, **SESSION},
    ),
    ("this backend's server", append("scripts/foreign/paced_server.py", "X = 1\n"), SESSION),
    ("how processes run", append("scripts/runtime/process.py", "X = 1\n"), SESSION),
    (
        "the load generator",
        append("scripts/loadgen/client.py", "X = 1\n"),
        {"calibrate": 1, **SESSION},
    ),
    ("a metric", append("scripts/metrics/cells.py", "X = 1\n"), {"summarize": 1, "report": 1}),
    ("the report's template", append("report/report.html.j2", "<!-- -->\n"), {"report": 1}),
    ("a further concurrency", configure(concurrencies=[1, 2, 3]), SESSION),
    ("a request rate", configure(rates=[2]), SESSION),
    ("a concurrency less", configure(concurrencies=[1]), SESSION),
    ("another seed", configure(seed=1), {"prompts": 1, **SESSION}),
    ("a further trial", configure(trials=2), SESSION),
    (
        "a further workload",
        configure(workloads=[*EXPERIMENT["workloads"], OTHER]),
        {"prompts": 1, **SESSION},
    ),
    ("an objective", configure(slo={"ttft_ms": 100}), {"summarize": 1, "report": 1}),
    (
        "a note on the model",
        configure(models=[{**EXPERIMENT["models"][0], "note": "hello"}]),
        {"report": 1},
    ),
    ("a longer window", configure(load={**EXPERIMENT["load"], "window_s": 2}), SESSION),
    ("a start for each cell", configure(isolation="cell"), SESSION),
    ("an option of the backend", configure(backends=[OPTION]), {"build": 1, **SESSION}),
    (
        "a longer context",
        configure(server={**EXPERIMENT["server"], "context_length": 256}),
        SESSION,
    ),
    ("quality asked for", configure(evaluation={"prompts": PROMPTS}), JUDGED),
    ("the model's bytes", replace("tiny-model/config.json", "tiny", "tiny2"), EVERYTHING),
]


def reordered(checkout: Checkout) -> list[str]:
    """The configuration's top-level blocks, backwards."""
    blocks = re.findall(
        r"^\S.*\n(?:[ -].*\n)*", (checkout.folder / "config.yaml").read_text(), re.MULTILINE
    )
    return list(reversed(blocks))


# A dry run takes seconds. These rows are like their neighbours, and left to CI.
LEFT_TO_CI = {
    "this backend's server",
    "a request rate",
    "a concurrency less",
    "another seed",
    "an objective",
    "a longer window",
    "a longer context",
    "a start for each cell",
}


@pytest.mark.parametrize(
    ("edit", "jobs"),
    [
        pytest.param(edit, jobs, id=name, marks=[pytest.mark.slow] if name in LEFT_TO_CI else [])
        for name, edit, jobs in TABLE
    ],
)
def test_an_edit_reruns_exactly_these_jobs(
    edited: Checkout, edit: Callable[[Checkout], None], jobs: dict[str, int]
) -> None:
    edit(edited)

    assert edited.planned() == jobs


def test_harmless_edits_rerun_nothing(edited: Checkout) -> None:
    for edit in HARMLESS:
        edit(edited)

    assert edited.planned() == {}


def test_the_order_of_the_configuration_reruns_the_report_alone(edited: Checkout) -> None:
    (edited.folder / "config.yaml").write_text("\n".join(reordered(edited)))

    assert set(edited.planned()) <= {"report"}


def test_a_second_run_does_nothing(finished: Checkout) -> None:
    assert "Nothing to be done" in finished.snakemake()
    assert "Nothing to be done" in finished.snakemake("report")


def test_a_dry_run_writes_nothing(edited: Checkout) -> None:
    edited.configure(concurrencies=[1, 3])
    before = listing(edited.folder)

    edited.planned()

    assert listing(edited.folder) == before


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file but Snakemake's own, its size and time."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and not {".snakemake", "__pycache__"} & set(
            path.relative_to(folder).parts
        ):
            found[str(path)] = (path.stat().st_size, path.stat().st_mtime_ns)
    return found


def test_touching_every_file_reruns_nothing(finished: Checkout) -> None:
    for path in finished.folder.rglob("*"):
        if path.is_file() and ".snakemake" not in path.parts:
            os.utime(path)

    assert finished.planned() == {}


def records(checkout: Checkout) -> Path:
    return checkout.folder / "results/measure/tiny/none/paced/t1/chat/c1/records.arrow"


def test_an_interrupted_copy_of_the_results_is_measured_again(finished: Checkout) -> None:
    """Records that are shorter than their cell says are no measurement."""
    whole = records(finished).read_bytes()
    records(finished).write_bytes(whole[:-1])
    try:
        said = finished.snakemake("--dry-run")
        assert "records.arrow has another length than was written" in said
        assert finished.planned() == SESSION
    finally:
        records(finished).write_bytes(whole)


def test_a_new_checkout_finds_what_the_store_holds(
    finished: Checkout, tmp_path: Path, tiny_model: Path
) -> None:
    folder = tmp_path / "checkout"
    folder.mkdir()
    other = Checkout(folder, tiny_model)
    other.store = finished.store

    said = other.snakemake("--until", "prompts")

    assert len(re.findall(r"found in the store", said)) == 2


def test_lost_bytes_are_made_again_where_they_are_needed(finished: Checkout) -> None:
    """The prompts are gone from the store: nothing happens while the cells stand; a new cell has them made, for itself alone."""
    for path in (finished.store / "prompts").rglob("prompts.jsonl"):
        path.unlink()
    assert finished.planned() == {}

    finished.configure(concurrencies=[1, 2, 3])
    try:
        assert "prompts.jsonl is gone" in finished.snakemake("--dry-run")
        assert finished.planned() == {"prompts": 1, **SESSION}
    finally:
        finished.configure()
