"""Who gives most tokens, who answers first, and who cannot be told from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metrics.intervals import mean_interval

# What the charts and verdicts compare: the value of one cell, and its interval within that cell's run.
COMPARED: dict[str, Callable[[dict[str, Any]], tuple[float | None, list[float] | None]]] = {
    "rate": lambda metrics: (
        metrics["output_token_throughput"],
        metrics["output_token_throughput_interval"],
    ),
    "ttft": lambda metrics: (metrics["ttft"]["p50"], metrics["ttft"]["p50_interval"]),
}


def estimates(rows: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """One estimate for each backend and offered load: {backend, offered, value, low, high}.

    Of one trial, its value and the interval within its run. Of several, the mean of their values, with Student's interval
    over the trials (None for two): what differs from run to run is not seen inside one.
    """
    made = []
    for backend, offered in dict.fromkeys((row["backend"], row["value"]) for row in rows):
        pairs = [
            COMPARED[name](row["metrics"])
            for row in rows
            if (row["backend"], row["value"]) == (backend, offered)
        ]
        values = [value for value, _ in pairs if value is not None]
        if not values:
            continue
        low, high = (pairs[0][1] if len(pairs) == 1 else mean_interval(values)) or (None, None)
        made.append(
            {
                "backend": backend,
                "offered": offered,
                "value": sum(values) / len(values),
                "low": low,
                "high": high,
            }
        )
    return made


def measured(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if "metrics" in row]


def verdicts(rows: list[dict[str, Any]]) -> list[str]:
    """A sentence for each offered load: who gives most tokens, who answers first. Nothing where there is no one to compare.

    Only cells count whose client kept up, whose answers are sound, and whose model is still comparable.
    """
    fit = [
        row
        for row in measured(rows)
        if row["metrics"]["client"]["valid"]
        and not row["evaluation"]["broken"]
        and row["status"].word not in ("not comparable", "failed")
    ]
    said = []
    for offered, load in sorted(
        {(row["value"], row["load"]) for row in fit}
        if len({row["backend"] for row in rows}) > 1
        else []
    ):
        rate, ttft = (
            leaders([entry for entry in estimates(fit, name) if entry["offered"] == offered], best)
            for name, best in (("rate", max), ("ttft", min))
        )
        if rate and ttft:
            said.append(
                f"With {load}: most tokens from {rate}; shortest time to first token from {ttft}."
            )
    return said


def leaders(entries: list[dict[str, Any]], best: Any) -> str:
    """The best backend, with those whose interval overlaps its own: these runs do not tell them apart. Empty if there is none."""
    if not entries:
        return ""
    first = best(entries, key=lambda entry: entry["value"])
    if first["low"] is None:
        return f"{first['backend']} (too few samples for an interval)"
    near = [
        entry["backend"]
        for entry in entries
        if entry is not first
        and (
            entry["low"] is None
            or (entry["low"] <= first["high"] and entry["high"] >= first["low"])
        )
    ]
    return str(first["backend"]) + (
        f" (not distinguishable from {' and '.join(near)})" if near else ""
    )
