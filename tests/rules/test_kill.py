"""A run killed at any moment goes on where it was: no server left, nothing half-written taken for whole."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess

import psutil
import pytest

from conftest import EXPERIMENT, Checkout, until
from loadgen.reader import read
from runtime.process import OWNER


def servers(checkout: Checkout) -> list[int]:
    """Processes of this checkout's servers."""
    found = []
    for process in psutil.process_iter():
        try:
            if OWNER in process.environ() and str(checkout.folder) in " ".join(process.cmdline()):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def none_left(checkout: Checkout, within_s: float = 60) -> bool:
    return bool(until(lambda: not servers(checkout), within_s))


def assert_whole(checkout: Checkout) -> None:
    for path in (checkout.folder / "results").rglob("*.json"):
        json.loads(path.read_text())
    assert all(cell["failure"] is None for cell in checkout.cells().values())
    assert len(checkout.cells()) == 2
    assert (checkout.folder / "results/report.html").read_text().rstrip().endswith("</html>")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_killed_while_a_server_runs(checkout: Checkout, number: signal.Signals) -> None:
    checkout.configure(load={**EXPERIMENT["load"], "window_s": 3})
    run = checkout.start()
    until(lambda: servers(checkout))

    os.killpg(run.pid, number)
    run.wait(60)

    assert none_left(checkout)
    if number == signal.SIGKILL:  # snakemake itself had no chance to unlock its folder
        checkout.snakemake("--unlock")
    checkout.snakemake()
    assert_whole(checkout)
    assert none_left(checkout, 1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_killed_at_a_random_moment(checkout: Checkout, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(2):
        run = checkout.start("--rerun-incomplete")
        try:
            run.wait(chance.uniform(0.5, 15))
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, chance.choice([signal.SIGINT, signal.SIGTERM, signal.SIGKILL]))
            run.wait(60)
        assert none_left(checkout)
        checkout.snakemake("--unlock")

    checkout.snakemake()

    assert_whole(checkout)


@pytest.mark.slow
def test_a_killed_cell_keeps_the_records_of_finished_requests(checkout: Checkout) -> None:
    checkout.configure(concurrencies=[1], load={**EXPERIMENT["load"], "window_s": 60})
    run = checkout.start()
    path = (
        checkout.folder / "results/measure/tiny/none/paced/t1/chat/c1/records.arrow.0"
    )  # its only worker's part
    until(lambda: path.exists() and path.stat().st_size > 20_000)

    os.killpg(run.pid, signal.SIGKILL)
    run.wait(60)

    assert none_left(checkout)
    assert len(read(path)) > 5
