"""What the machine did beside a cell, from the telemetry's rows (sampling): over the window, and each five seconds."""

from __future__ import annotations

from typing import Any

from metrics.windows import STEP_NS, starts

Rows = list[dict[str, Any]]


def over(rows: Rows, start_ns: int, end_ns: int) -> dict[str, Any]:
    """Of the samples in a span: server_cores and client_cores (CPU time / time between the first and the last), the largest
    server_rss_bytes, the mean host_cpu_percent; of the cell's GPUs together the mean gpu_utilization_percent, the summed mean
    gpu_power_w, the largest summed gpu_memory_bytes, the least sm_clock_mhz, and gpu_throttled, the reasons that were seen.

    Empty where fewer than two samples fell into it; no GPU fields where there was none.
    """
    inside = [row for row in rows if start_ns <= row["time_ns"] < end_ns]
    if len(inside) < 2:
        return {}
    first, last = inside[0], inside[-1]
    seconds = (last["time_ns"] - first["time_ns"]) / 1e9
    found = {
        f"{who}_cores": (last[f"{who}_cpu_s"] - first[f"{who}_cpu_s"]) / seconds
        for who in ("server", "client")
    }
    found |= {
        "server_rss_bytes": max(row["server_rss_bytes"] for row in inside),
        "host_cpu_percent": mean([row["host_cpu_percent"] for row in inside]),
    }
    gpus = [row["gpus"] for row in inside if row.get("gpus")]
    if gpus:
        found |= {
            "gpu_utilization_percent": mean(
                [gpu["utilization_percent"] for row in gpus for gpu in row]
            ),
            "gpu_power_w": mean([sum(gpu["power_w"] for gpu in row) for row in gpus]),
            "gpu_memory_bytes": max(sum(gpu["memory_bytes"] for gpu in row) for row in gpus),
            "sm_clock_mhz": min(gpu["sm_clock_mhz"] for row in gpus for gpu in row),
            "gpu_throttled": sorted(
                {reason for row in gpus for gpu in row for reason in gpu["throttled"]}
            ),
        }
    return found


def time_line(rows: Rows, course: dict[str, Any]) -> list[dict[str, Any]]:
    """`over` for each step of metrics.windows.frame, with its start_s; steps without two samples are left out."""
    steps = [
        ({"start_s": (start - course["clock_ns"]) / 1e9}, over(rows, start, start + STEP_NS))
        for start in starts(course)
    ]
    return [when | what for when, what in steps if what]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)
