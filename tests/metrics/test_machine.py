from __future__ import annotations

from typing import Any

import pytest

from metrics import machine


def row(second: float, gpu: dict[str, Any] | None = None) -> dict[str, Any]:
    """A sample of a server that takes two cores and a client that takes half of one."""
    made: dict[str, Any] = {
        "time_ns": int(second * 1e9),
        "server_cpu_s": 2 * second,
        "client_cpu_s": second / 2,
        "server_rss_bytes": int(1000 + second),
        "host_cpu_percent": 50.0,
        "host_available_bytes": 1,
    }
    return made | ({"gpus": [gpu, gpu]} if gpu else {})


GPU = {
    "uuid": "GPU-1",
    "utilization_percent": 80,
    "memory_bytes": 10,
    "power_w": 300.0,
    "sm_clock_mhz": 1980,
    "throttled": [],
}


def test_over_a_span_rates_are_by_its_own_samples() -> None:
    found = machine.over([row(second) for second in range(10)], 2_000_000_000, 6_000_000_000)

    assert found == {
        "server_cores": 2,
        "client_cores": 0.5,
        "server_rss_bytes": 1005,
        "host_cpu_percent": 50,
    }


def test_gpus_are_told_together_and_only_where_there_are_some() -> None:
    rows = [
        row(1, GPU),
        row(2, GPU | {"utilization_percent": 40, "sm_clock_mhz": 1200, "throttled": ["power cap"]}),
    ]
    found = machine.over(rows, 0, 10**10)

    assert found["gpu_utilization_percent"] == 60
    assert found["gpu_power_w"] == 600
    assert found["gpu_memory_bytes"] == 20
    assert found["sm_clock_mhz"] == 1200
    assert found["gpu_throttled"] == ["power cap"]


def test_a_span_with_one_sample_says_nothing() -> None:
    assert machine.over([row(1)], 0, 10**10) == {}


def test_the_time_line_has_the_steps_of_the_window() -> None:
    course = {"clock_ns": 0, "window_start_ns": 3_000_000_000, "window_end_ns": 14_000_000_000}
    line = machine.time_line([row(second / 2) for second in range(40)], course)

    assert [step["start_s"] for step in line] == [3, 8]
    assert [step["server_cores"] for step in line] == [pytest.approx(2), pytest.approx(2)]
