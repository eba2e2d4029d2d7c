"""One row a cell: what the headline says, from the request frame and the course of the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from metrics import windows
from metrics.intervals import mean_interval, median_interval, percentile

DISAGREEMENT = 0.02


def summary(
    requests: pd.DataFrame,
    course: dict[str, Any],
    slo: dict[str, float],
    asked_tokens: Sequence[int],
) -> dict[str, Any]:
    """The metrics of a cell, over its window. `requests` is the request frame, warm-up and drain included; `asked_tokens` the
    longest answer to each prompt.

    output_token_throughput  tokens whose event arrived in the window / its length, tokens/s, whatever became of the request;
                             its interval is Student's over the five-second steps (they are not quite independent)
    request_throughput       'ok' requests done in the window / its length, 1/s
    ttft, tpot, e2e_latency  ms, over the 'ok' requests *sent* in the window, each followed to its end
    itl                      ms: the gap before an event / its tokens, once for each of its tokens; chunk_gap: the gap alone
    user_rate                tokens/s of one user while decoding: the median of 1 / tpot
    goodput                  requests sent in the window that met every objective / all of them, failures included
    full_length              'ok' answers that went on to as many tokens as were asked / all of them
    failures                 count by outcome of those that were not 'ok', of the requests sent in the window
    """
    start, end = course["window_start_ns"], course["window_end_ns"]
    length_s = (end - start) / 1e9
    load = requests[requests.phase == "load"]
    sent = load[
        (load.sent_ns.fillna(load.scheduled_ns) >= start)
        & (load.sent_ns.fillna(load.scheduled_ns) < end)
    ]
    ok = sent[sent.outcome == "ok"]
    event_ns, event_tokens = windows.arrivals(load)
    inside = (event_ns >= start) & (event_ns < end)
    steps = windows.frame(load, course)
    rates = steps.output_token_throughput[steps.phase == "window"].to_list()
    gaps, gap_tokens = between(ok)
    done = load[(load.outcome == "ok") & (load.done_ns >= start) & (load.done_ns < end)]
    counts = {
        name: float(ok[f"tokens_{name}"].sum()) for name in ("usage", "retokenized", "events")
    }
    usage = bool(ok.tokens_usage.notna().all()) and len(ok) > 0
    differing = disagree(counts["usage"], counts["retokenized"]) if usage else None
    user_rate = percentile(1e9 / ok.tpot_ns.dropna().to_numpy(float), 50)
    return {
        "requests": len(sent),
        "failures": {
            str(name): int(count)
            for name, count in sent.outcome[sent.outcome != "ok"].value_counts().items()
        },
        "output_token_throughput": float(event_tokens[inside].sum()) / length_s,
        "output_token_throughput_interval": mean_interval(rates),
        "request_throughput": len(done) / length_s,
        "ttft": distribution(ok.ttft_ns),
        "ttft_scheduled": distribution(ok.ttft_scheduled_ns),
        "ttft_headers": distribution(ok.ttft_headers_ns),
        "tpot": distribution(ok.tpot_ns),
        "e2e_latency": distribution(ok.e2e_latency_ns),
        "itl": distribution(
            pd.Series(
                np.repeat(
                    gaps / np.maximum(gap_tokens, 1),
                    np.round(np.maximum(gap_tokens, 0)).astype(int),
                )
            )
        ),
        "chunk_gap": distribution(pd.Series(gaps)),
        "user_rate": user_rate,
        "goodput": good(sent, slo).mean() if slo and len(sent) else None,
        "isl": float(ok.prompt_tokens.mean()) if ok.prompt_tokens.notna().any() else None,
        "osl": float(ok.tokens.mean()) if len(ok) else None,
        "full_length": float(
            (ok.tokens >= ok.prompt.map(lambda prompt: asked_tokens[prompt])).mean()
        )
        if len(ok)
        else None,
        "in_flight": windows.in_flight(load, start, end),
        "tokens": counts
        | {
            "source": "usage" if usage else "retokenized",
            "disagree": differing,
            "flagged": differing is not None and differing > DISAGREEMENT,
        },
        "windows": steps.to_dict("records"),
    }


def distribution(values_ns: pd.Series) -> dict[str, Any]:
    """n, mean, p50 with its interval, p90, p99 and max of times, in ms; None where there are too few."""
    values = values_ns.dropna().to_numpy(float) / 1e6
    return {
        "n": len(values),
        "mean": float(values.mean()) if len(values) else None,
        "p50": percentile(values, 50),
        "p50_interval": median_interval(values),
        "p90": percentile(values, 90),
        "p99": percentile(values, 99),
        "max": float(values.max()) if len(values) else None,
    }


def between(requests: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Gaps between consecutive events with text of each request (ns), and the tokens of the event that ends the gap."""
    gaps = [np.diff(times) for times in requests.event_ns]
    tokens = [counts[1:] for counts in requests.event_tokens]
    return (
        (np.concatenate(gaps).astype(float), np.concatenate(tokens))
        if gaps
        else (np.zeros(0), np.zeros(0))
    )


def good(requests: pd.DataFrame, slo: dict[str, float]) -> pd.Series:
    """Whether each request met every objective; a failed one met none, and an answer of one token has no tpot to miss."""
    met = requests.outcome == "ok"
    for key, column in (
        ("ttft_ms", "ttft_ns"),
        ("e2e_ms", "e2e_latency_ns"),
        ("tpot_ms", "tpot_ns"),
    ):
        if key in slo:
            within = (requests[column] <= slo[key] * 1e6).fillna(key == "tpot_ms")
            met &= within.astype(bool)
    return met


def disagree(usage: float, retokenized: float) -> float | None:
    """Relative difference between the server's count and one tokenization; events, which hold several tokens, are not compared."""
    return max(usage, retokenized) / min(usage, retokenized) - 1 if usage and retokenized else None
