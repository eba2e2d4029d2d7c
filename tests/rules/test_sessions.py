"""A session: one server start for all its cells, what is kept and what is measured again, and who waits for whom."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from conftest import EXPERIMENT, Checkout, default_plan, until
from rules.test_kill import none_left

LOAD = {**EXPERIMENT["load"], "window_s": 0.5}
TWO = [EXPERIMENT["workloads"][0], {**EXPERIMENT["workloads"][0], "name": "short", "max_tokens": 4}]


def starts(checkout: Checkout) -> dict[str, int]:
    """The start that each cell was measured on."""
    return {path: cell["start"]["number"] for path, cell in checkout.cells().items()}


def session(checkout: Checkout, trial: int = 1) -> Path:
    return checkout.folder / f"results/measure/tiny/none/paced/t{trial}"


def test_all_loads_of_all_workloads_are_measured_on_one_start_in_an_order_of_their_own(
    checkout: Checkout,
) -> None:
    checkout.configure(load=LOAD, workloads=TWO, trials=2)

    checkout.snakemake()

    cells = checkout.cells()
    assert len(cells) == 8
    assert set(starts(checkout).values()) == {1}
    orders = {}
    for trial in (1, 2):
        own = [cell for path, cell in cells.items() if f"/t{trial}/" in path]
        own.sort(key=lambda cell: cell["clock"]["unix_ns"])
        asked = [cell["spec"]["cell"] for cell in own]
        orders[trial] = [(one["workload"]["name"], one["offered"]["value"]) for one in asked]
        for place, cell in enumerate(own):
            assert len(cell["start"]["before"]) == place
            assert cell["cache"] == "off"
            assert (cell["rest"] is None) == (place == 0)
        assert len({cell["start"]["started"] for cell in own}) == 1
    assert len(list(checkout.folder.rglob("server.*.log"))) == 2
    assert (
        "every trial began after the one before had ended"
        in (checkout.folder / "results/report.html").read_text()
    )


@pytest.mark.slow
def test_a_further_load_starts_the_server_once_and_measures_that_load_alone(
    checkout: Checkout,
) -> None:
    checkout.configure(load=LOAD)
    checkout.snakemake()
    before = {path: cell["clock"] for path, cell in checkout.cells().items()}

    checkout.configure(load=LOAD, concurrencies=[1, 2, 3])
    checkout.snakemake()

    after = {path: cell["clock"] for path, cell in checkout.cells().items()}
    assert {path: after[path] for path in before} == before
    assert starts(checkout)["tiny/none/paced/t1/chat/c3"] == 2
    assert checkout.planned() == {}


@pytest.mark.slow
def test_a_load_less_starts_no_server(checkout: Checkout) -> None:
    checkout.configure(load=LOAD)
    checkout.snakemake()
    for log in checkout.folder.rglob("server.*.log"):
        log.unlink()

    checkout.configure(load=LOAD, concurrencies=[2])
    checkout.snakemake()

    assert not list(checkout.folder.rglob("server.*.log"))
    assert "2 users" in (checkout.folder / "results/report.md").read_text()
    assert "1 user " not in (checkout.folder / "results/report.md").read_text()


@pytest.mark.slow
def test_a_cell_whose_folder_was_removed_is_measured_again_alone(checkout: Checkout) -> None:
    checkout.configure(load=LOAD)
    checkout.snakemake()
    other = checkout.cells()["tiny/none/paced/t1/chat/c1"]["clock"]
    shutil.rmtree(session(checkout) / "chat/c2")

    said = checkout.snakemake()

    assert "chat/c2/cell.json is gone" in said
    assert checkout.cells()["tiny/none/paced/t1/chat/c1"]["clock"] == other
    assert starts(checkout)["tiny/none/paced/t1/chat/c2"] == 2
    assert checkout.planned() == {}


@pytest.mark.slow
def test_each_cell_has_a_start_of_its_own_where_that_is_asked_for(checkout: Checkout) -> None:
    checkout.configure(load=LOAD, isolation="cell")

    checkout.snakemake()

    assert sorted(starts(checkout).values()) == [1, 2]
    assert [cell["start"]["before"] for cell in checkout.cells().values()] == [[], []]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_session_killed_half_way_goes_on_where_it_was(
    checkout: Checkout, number: signal.Signals
) -> None:
    checkout.configure(load={**LOAD, "window_s": 4})
    run = checkout.start()
    first = until(lambda: next(session(checkout).rglob("cell.json"), None))
    until(lambda: next((path for path in session(checkout).rglob("records.arrow.0")), None))
    kept = first.read_bytes()

    os.killpg(run.pid, number)
    run.wait(60)
    assert none_left(checkout)
    checkout.snakemake("--unlock")
    checkout.snakemake()

    assert first.read_bytes() == kept
    assert sorted(starts(checkout).values()) == [1, 2]


def backend(fault: str, after: int) -> dict[str, Any]:
    return {"name": "paced", "options": {"fault": fault, "fault_after": after}}


@pytest.mark.slow
def test_a_server_that_dies_under_one_load_is_started_again_for_the_next(
    checkout: Checkout,
) -> None:
    checkout.configure(load=LOAD, concurrencies=[1, 2, 4], backends=[backend("die-crowded", 3)])

    checkout.snakemake()

    kinds = {
        path.rsplit("/", 1)[1]: (cell["failure"] or {}).get("kind")
        for path, cell in checkout.cells().items()
    }
    assert kinds == {"c1": None, "c2": None, "c4": "server_died"}
    assert checkout.planned() == {}


@pytest.mark.slow
def test_a_server_that_dies_under_every_load_is_not_started_for_ever(checkout: Checkout) -> None:
    checkout.configure(
        load=LOAD, concurrencies=[1, 2, 3, 4], workloads=TWO, backends=[backend("die", 3)]
    )

    checkout.snakemake()

    kinds = [cell["failure"]["kind"] for cell in checkout.cells().values()]
    assert sorted(kinds) == ["not_tried"] * 5 + ["server_died"] * 3
    assert len(list(checkout.folder.rglob("server.*.log"))) == 3

    said = checkout.snakemake()

    assert "Not tried: the server had died 3 times in a row" in said
    kinds = [cell["failure"]["kind"] for cell in checkout.cells().values()]
    assert sorted(kinds) == ["not_tried"] * 2 + ["server_died"] * 6


@pytest.mark.slow
def test_trials_are_blocks_and_backends_are_measured_in_the_drawn_order(checkout: Checkout) -> None:
    names = ["one", "two", "three"]
    checkout.configure(
        load=LOAD,
        concurrencies=[1],
        trials=2,
        backends=[{"name": name, "adapter": "paced"} for name in names],
    )

    checkout.snakemake()

    began = sorted((cell["clock"]["unix_ns"], path) for path, cell in checkout.cells().items())
    order = [tuple(path.split("/")[2:4]) for _, path in began]
    plan = default_plan()
    for trial in (1, 2):
        drawn = sorted(
            names, key=lambda name: -plan.priority("measure", f"tiny/none/{name}/t{trial}")
        )
        assert [name for name, of in order if of == f"t{trial}"] == drawn
    assert [of for _, of in order] == ["t1"] * 3 + ["t2"] * 3


def other_checkout(checkout: Checkout, folder: Path, tiny_model: Path) -> Checkout:
    folder.mkdir()
    other = Checkout(folder, tiny_model)
    other.store = checkout.store
    return other


@pytest.mark.slow
def test_two_runs_that_share_a_results_folder_wait_for_each_other(
    checkout: Checkout, tmp_path: Path, tiny_model: Path
) -> None:
    other = other_checkout(checkout, tmp_path / "other", tiny_model)
    shared = str(tmp_path / "shared results")
    for one in (checkout, other):
        one.configure(load=LOAD, results=shared)

    runs = [one.start() for one in (checkout, other)]

    assert [run.wait(200) for run in runs] == [0, 0]
    cells = [json.loads(path.read_text()) for path in Path(shared, "measure").rglob("cell.json")]
    assert [cell["failure"] for cell in cells] == [None, None]


@pytest.mark.slow
def test_two_runs_on_one_machine_measure_one_after_the_other(
    checkout: Checkout, tmp_path: Path, tiny_model: Path
) -> None:
    other = other_checkout(checkout, tmp_path / "other", tiny_model)
    (checkout.folder / "machine.lock").touch()
    os.link(checkout.folder / "machine.lock", other.folder / "machine.lock")
    for one in (checkout, other):
        one.configure(load={**LOAD, "window_s": 3})

    runs = [one.start() for one in (checkout, other)]

    assert [run.wait(200) for run in runs] == [0, 0]
    spans = []
    for one in (checkout, other):
        courses = [cell["course"] for cell in one.cells().values()]
        spans.append(
            (
                min(course["clock_ns"] for course in courses),
                max(course["window_end_ns"] for course in courses),
            )
        )
    (_, first_end), (second_start, _) = sorted(spans)
    assert first_end < second_start
    said = (checkout.folder / "run.log").read_text() + (other.folder / "run.log").read_text()
    assert "waiting for process" in said
    assert "measures tiny/none/paced/t1" in said


@pytest.mark.slow
def test_no_job_outlives_the_snakemake_that_started_it(checkout: Checkout) -> None:
    """SIGKILL to Snakemake alone, its jobs are told by nobody; the next run begins at once."""
    checkout.configure(load={**LOAD, "window_s": 20})
    run = checkout.start()
    until(lambda: next(session(checkout).rglob("records.arrow.0"), None))

    os.kill(run.pid, signal.SIGKILL)
    run.wait(60)
    checkout.configure(load=LOAD)
    checkout.snakemake("--unlock")
    checkout.snakemake()

    assert none_left(checkout)
    assert [cell["failure"] for cell in checkout.cells().values()] == [None, None]
    assert checkout.planned() == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reset", "states"), [("/reset", ["cold", "cold"]), (None, ["cold", "primed"])]
)
def test_a_prefix_cache_is_emptied_between_cells_where_there_is_a_way(
    checkout: Checkout, reset: str | None, states: list[str]
) -> None:
    if reset:
        with (checkout.folder / "scripts/backends/paced.py").open("a") as adapter:
            adapter.write(f'\nRESET = "{reset}"\n')
    checkout.configure(load=LOAD, server={**EXPERIMENT["server"], "prefix_caching": True})

    checkout.snakemake()

    cells = sorted(checkout.cells().values(), key=lambda cell: cell["clock"]["unix_ns"])
    assert [cell["cache"] for cell in cells] == states


@pytest.mark.slow
def test_a_server_that_dies_at_rest_is_told_at_the_load_before(checkout: Checkout) -> None:
    server = checkout.folder / "scripts/foreign/paced_server.py"
    dying = "        self.served = self.under_way = 0\n        threading.Timer(1.5, os._exit, (3,)).start()\n"
    text = server.read_text().replace("        self.served = self.under_way = 0\n", dying)
    server.write_text(text.replace("import sys\n", "import sys\nimport threading\n", 1))
    load = {**LOAD, "warmup_requests": 0, "window_s": 0.2, "ramp_s": 0, "settle_s": 3}
    checkout.configure(load=load)

    checkout.snakemake()

    cells = sorted(checkout.cells().values(), key=lambda cell: cell["clock"]["unix_ns"])
    assert [cell["failure"] for cell in cells] == [None, None]
    assert "between two loads" in cells[0]["died_after"]
    assert [cell["start"]["number"] for cell in cells] == [1, 2]
    assert "died after this load" in (checkout.folder / "results/report.html").read_text()


@pytest.mark.parametrize("option", [["--forceall"], ["--forcerun", "calibrate"]])
def test_forcing_is_refused_since_it_would_do_nothing(
    checkout: Checkout, option: list[str]
) -> None:
    said = checkout.snakemake(*option, fails=True)

    assert "Remedy: to measure a cell again, remove its folder" in said


@pytest.mark.slow
@pytest.mark.parametrize("name", ["measure", "my-summarize", "assess"])
def test_names_may_be_those_of_stages(checkout: Checkout, name: str) -> None:
    checkout.configure(load=LOAD, concurrencies=[1], backends=[{"name": name, "adapter": "paced"}])

    checkout.snakemake()

    assert checkout.planned() == {}
    assert f",{name}," in (checkout.folder / "results/summary.csv").read_text()


@pytest.mark.parametrize("spoil", ["directory", "dangling link"])
def test_a_lock_that_cannot_be_one_is_told_with_its_remedy(checkout: Checkout, spoil: str) -> None:
    lock = checkout.folder / "machine.lock"
    if spoil == "directory":
        lock.mkdir()
    else:
        lock.symlink_to(checkout.folder / "nowhere/at all")

    said = checkout.snakemake(fails=True)

    assert "machine.lock cannot be used as a lock" in said
    assert "SHOWDOWN_MACHINE_LOCK" in said


@pytest.mark.slow
def test_a_server_that_cannot_be_started_again_leaves_its_other_loads_to_the_next_run(
    checkout: Checkout,
) -> None:
    """It was ready once, so it may be again: what it was not asked is no result."""
    server = checkout.folder / "scripts/foreign/paced_server.py"
    once = """    started = os.path.join(os.path.dirname(__file__), "started")
    if os.path.exists(started):
        sys.exit("once only")
    open(started, "w").close()
"""
    text = server.read_text()
    assert '    if args.fault == "no-start":' in text
    server.write_text(
        text.replace('    if args.fault == "no-start":', once + '    if args.fault == "no-start":')
    )
    loads = [1, 2, 3, 4]
    checkout.configure(load=LOAD, concurrencies=loads, backends=[backend("die-crowded", 0)])

    checkout.snakemake()

    kinds = sorted(cell["failure"]["kind"] for cell in checkout.cells().values())
    assert kinds == ["not_tried"] * 3 + ["server_died"]
    assert len(list(checkout.folder.rglob("server.*.log"))) == 1 + 2
    (server.parent / "started").unlink()

    assert "Not tried" in checkout.snakemake()
    assert sorted(cell["failure"]["kind"] for cell in checkout.cells().values()) != kinds
