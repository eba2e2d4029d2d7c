"""The client's health, from cells made by hand."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from test_cells import COURSE, frame, request

from metrics import client

HOST = {"cpu": "abacus", "cores": 2}
STEPS = [
    {
        "streams": 1,
        "ttft_error_ms": {"p99": None, "max": 0.3},
        "gap_error_ms": {"p99": 0.01, "max": 9.0},
    },
    {
        "streams": 8,
        "ttft_error_ms": {"p99": 0.5, "max": 9.0},
        "gap_error_ms": {"p99": 0.02, "max": 9.0},
    },
]
CALIBRATION: dict[str, Any] = {
    "host": HOST,
    "steps": STEPS,
    "ceiling": {
        "reads": {"per_s": 100.0, "cpu_share": 1.0},
        "requests": {"per_s": 50.0, "cpu_share": 1.0},
    },
}
COUNTS = {"sockets": 3, "retries": 1, "unstamped": 0, "clock_steps": 0}
RUN: dict[str, Any] = (
    COURSE | COUNTS | {"lag_ms": {"p50": 0.1, "p99": 0.5, "max": 1.0}, "cpu_shares": [0.1]}
)
QUIET = [request(11, 11.2, 5, 0.1), request(12, 12.2, 5, 0.1)]


def health(
    *rows: dict[str, Any], host: dict[str, Any] = HOST, open_loop: bool = False, **changes: Any
) -> dict[str, Any]:
    return client.health(frame(*rows), RUN | changes, CALIBRATION, host, open_loop)


def test_the_share_of_the_ceiling_adds_reads_and_requests_of_each_process() -> None:
    found = health(*QUIET)

    assert found["reads_per_s"] == pytest.approx(10 / 20)
    assert found["ceiling_share"] == pytest.approx(10 / 20 / 100 + 2 / 20 / 50)
    assert health(*QUIET, cpu_shares=[0.1, 0.3])["ceiling_share"] == pytest.approx(
        found["ceiling_share"] / 2
    )
    assert health(*QUIET, cpu_shares=[0.1, 0.3])["cpu_share"] == 0.3
    assert found["valid"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"cpu_shares": [0.1, 0.95]}, "used 0.95 of one core"),
        ({"lag_ms": {"p50": 1.0, "p99": 80.0, "max": 90.0}}, "80 ms late"),
        ({"clock_steps": 1}, "clock was set"),
    ],
)
def test_a_cell_whose_client_was_the_limit_is_invalid(change: dict[str, Any], word: str) -> None:
    found = health(*QUIET, **change)

    assert not found["valid"]
    assert word in found["reason"]


def test_near_its_ceiling_the_client_is_the_limit() -> None:
    found = health(*[request(11, 11.2, 5, 0.1, reads=1500)])

    assert found["ceiling_share"] > 0.7
    assert "of its ceiling" in found["reason"]


def test_late_sends_count_against_an_open_loop_only() -> None:
    late = [request(11, 11.2, 5, 0.1, scheduled_ns=10_500_000_000)]

    assert health(*late)["valid"]
    found = health(*late, open_loop=True)
    assert "500 ms late" in found["reason"]
    assert found["send_late_ms"]["max"] == pytest.approx(500)


def test_offered_sent_and_done_are_those_of_the_window() -> None:
    rows = [
        request(9.9, 10.2, 2, 0.1),  # done in it
        request(30.1, 30.2, 2, 0.1, scheduled_ns=29_000_000_000),  # offered in it, sent too late
        request(12, 12.1, 2, 0.1),
        request(29, 31, 2, 0.1),  # sent in it, done after
    ]

    found = health(*rows)

    assert [round(found[f"{name}_per_s"] * 20) for name in ("offered", "sent", "done")] == [3, 2, 2]


@pytest.mark.parametrize(("users", "error"), [(1, 0.3), (2, 0.5), (20, 0.5)])
def test_the_stated_error_is_that_of_as_many_streams(users: int, error: float) -> None:
    found = health(*[request(10, 10.5, 2, 19.4)] * users)

    assert found["ttft_error_ms"] == error


@pytest.mark.parametrize("change", [{"host": {"cpu": "other", "cores": 2}}, {"unstamped": 1}])
def test_no_error_is_stated_that_was_not_found_on_this_host_with_the_kernels_stamps(
    change: dict[str, Any],
) -> None:
    assert health(*QUIET, **change)["ttft_error_ms"] is None


def test_events_of_one_read_are_counted() -> None:
    rows = request(11, 11.2, 4, 0.1)
    rows["event_ns"] = rows["event_ns"][[0, 0, 0, 3]]

    assert health(rows)["merged_reads"] == pytest.approx(2 / 4)


def test_a_cell_that_sent_nothing_in_its_window_is_no_crash() -> None:
    found = health(request(9, 9, 0, 0, outcome="connect_error", sent_ns=pd.NA))

    assert found["send_late_ms"]["p99"] is None
    assert found["valid"]
