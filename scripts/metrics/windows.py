"""One row each five seconds of a cell: its time line."""

from __future__ import annotations

import numpy as np
import pandas as pd

from metrics.intervals import percentile

STEP_NS = 5_000_000_000


def arrivals(requests: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Every event with text of the frame: when it came (ns), how many tokens it completed. Two arrays of one length."""
    if requests.empty:
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    return np.concatenate(requests.event_ns.tolist()).astype(np.int64), np.concatenate(
        requests.event_tokens.tolist()
    )


def starts(course: dict[str, int]) -> range:
    """When each step starts, ns. Steps are aligned to the window, so that the window is cut into whole ones."""
    first = (
        course["window_start_ns"]
        - (course["window_start_ns"] - course["clock_ns"]) // STEP_NS * STEP_NS
    )
    return range(first, course["window_end_ns"] - STEP_NS + 1, STEP_NS)


def frame(requests: pd.DataFrame, course: dict[str, int]) -> pd.DataFrame:
    """Steps from the start of the clock to the end of the window, whole ones only. Columns:

    start_s        seconds since the clock started;   phase  'window' if it lies wholly in the window, else 'ramp'
    output_token_throughput   tokens that arrived in the step / its length, tokens/s
    started, failed   requests sent in the step, and those of them that were not 'ok'
    ttft_p50_ms    of the requests sent in the step
    in_flight      mean number of requests under way
    """
    event_ns, event_tokens = arrivals(requests)
    rows = []
    for start in starts(course):
        end = start + STEP_NS
        inside = (event_ns >= start) & (event_ns < end)
        sent = requests[(requests.sent_ns >= start) & (requests.sent_ns < end)]
        ttft = percentile(sent.ttft_ns[sent.outcome == "ok"].dropna().to_numpy(), 50)
        rows.append(
            {
                "start_s": (start - course["clock_ns"]) / 1e9,
                "phase": "window" if start >= course["window_start_ns"] else "ramp",
                "output_token_throughput": float(event_tokens[inside].sum()) * 1e9 / STEP_NS,
                "started": len(sent),
                "failed": int((sent.outcome != "ok").sum()),
                "ttft_p50_ms": None if ttft is None else ttft / 1e6,
                "in_flight": in_flight(requests, start, end),
            }
        )
    return pd.DataFrame(
        rows,
        columns=[
            "start_s",
            "phase",
            "output_token_throughput",
            "started",
            "failed",
            "ttft_p50_ms",
            "in_flight",
        ],
    )


def in_flight(requests: pd.DataFrame, start_ns: int, end_ns: int) -> float:
    """Mean number of requests between sent and done in a span: the sum of their overlaps with it / its length."""
    overlap = requests.done_ns.clip(upper=end_ns) - requests.sent_ns.clip(lower=start_ns)
    return float(overlap.clip(lower=0).sum()) / (end_ns - start_ns)
