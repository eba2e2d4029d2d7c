"""A cell made by hand: who counts, in which window."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from metrics import cells, windows

S = 1_000_000_000
COURSE: dict[str, Any] = {"clock_ns": 0, "window_start_ns": 10 * S, "window_end_ns": 30 * S}
ASKED = [100]


def request(
    sent_s: float,
    first_s: float,
    tokens: int,
    gap_s: float,
    outcome: str = "ok",
    phase: str = "load",
    **fields: Any,
) -> dict[str, Any]:
    """A request whose tokens come one an event, `gap_s` apart."""
    times = np.array(
        [round((first_s + gap_s * number) * S) for number in range(tokens)], dtype=np.int64
    )
    last = int(times[-1]) if tokens else round(sent_s * S)
    made = {
        **{
            "user": 0,
            "prompt": 0,
            "phase": phase,
            "reads": tokens,
            "outcome": outcome,
            "scheduled_ns": round(sent_s * S),
            "sent_ns": round(sent_s * S),
            "done_ns": last + S // 100,
        },
        **{
            "ttft_ns": int(times[0]) - round(sent_s * S) if tokens else pd.NA,
            "e2e_latency_ns": last - round(sent_s * S) if tokens else pd.NA,
        },
        **{
            "tpot_ns": (last - int(times[0])) / (tokens - 1) if tokens > 1 else pd.NA,
            "event_ns": times,
            "event_tokens": np.ones(tokens),
        },
        **{
            "tokens": tokens,
            "tokens_usage": tokens,
            "tokens_retokenized": tokens,
            "tokens_events": tokens,
            "prompt_tokens": 7,
        },
    }
    made |= {"ttft_scheduled_ns": made["ttft_ns"], "ttft_headers_ns": 1}
    return made | fields


def frame(*rows: dict[str, Any]) -> pd.DataFrame:
    made = pd.DataFrame(rows)
    return made.astype(
        dict.fromkeys(
            [
                name
                for name in made.columns
                if (name.endswith("_ns") and name != "event_ns") or name.startswith("tokens")
            ],
            "Float64",
        )
    )


def test_tokens_count_by_their_own_time_and_latencies_by_the_start() -> None:
    requests = frame(
        request(
            9, 9.5, 11, 0.1
        ),  # 9.5 ... 10.5: six of its tokens (10.0 to 10.5) lie in the window, its TTFT does not count
        request(
            29, 29.5, 11, 0.1
        ),  # 29.5 ... 30.5: five tokens (29.5 to 29.9) in the window, its TTFT counts
        request(12, 12.2, 3, 0.1),
        request(12, 12.2, 3, 0.1, phase="warmup"),
    )

    found = cells.summary(requests, COURSE, {}, ASKED)

    assert found["output_token_throughput"] == pytest.approx((6 + 5 + 3) / 20)
    assert found["requests"] == 2
    assert found["ttft"]["n"] == 2
    assert found["ttft"]["p50"] == pytest.approx((500 + 200) / 2)
    assert found["e2e_latency"]["max"] == pytest.approx(1500)
    assert found["request_throughput"] == pytest.approx(2 / 20), (
        "done in the window: the first and the third"
    )


def test_failures_stay_in_the_denominator() -> None:
    slo = {"ttft_ms": 300, "tpot_ms": 150}
    requests = frame(
        request(11, 11.2, 5, 0.1),  # good
        request(12, 12.4, 5, 0.1),  # too late
        request(13, 13.2, 5, 0.2),  # too slow
        request(14, 14.2, 1, 0.1),  # one token: no tpot to miss
        request(15, 15, 0, 0, outcome="timeout"),
        request(16, 16, 0, 0, outcome="connect_error", sent_ns=pd.NA),
    )

    found = cells.summary(requests, COURSE, slo, ASKED)

    assert found["requests"] == 6
    assert found["failures"] == {"timeout": 1, "connect_error": 1}
    assert found["goodput"] == pytest.approx(2 / 6)


def test_a_gap_is_shared_by_the_tokens_that_end_it() -> None:
    requests = frame(
        request(11, 11.2, 3, 0.1) | {"event_tokens": np.array([1.0, 1.0, 4.0]), "tokens": 6}
    )

    found = cells.summary(requests, COURSE, {}, ASKED)

    # gaps 100 ms (1 token) and 100 ms (4 tokens): itl 100, 25, 25, 25, 25
    assert found["chunk_gap"]["n"] == 2
    assert found["chunk_gap"]["p50"] == pytest.approx(100)
    assert found["itl"]["n"] == 5
    assert found["itl"]["p50"] == pytest.approx(25)


def test_counts_that_disagree_are_told() -> None:
    requests = frame(*[request(11, 11.2, 10, 0.1) | {"tokens_retokenized": 9}] * 3)

    tokens = cells.summary(requests, COURSE, {}, ASKED)["tokens"]

    assert tokens["source"] == "usage"
    assert tokens["disagree"] == pytest.approx(10 / 9 - 1)
    assert tokens["flagged"]


def test_one_answer_without_usage_changes_the_source() -> None:
    requests = frame(
        request(11, 11.2, 10, 0.1), request(12, 12.2, 10, 0.1) | {"tokens_usage": pd.NA}
    )

    assert cells.summary(requests, COURSE, {}, ASKED)["tokens"]["source"] == "retokenized"


def test_answers_shorter_than_asked_are_told() -> None:
    requests = frame(request(11, 11.2, 100, 0.01), request(12, 12.2, 99, 0.01))

    assert cells.summary(requests, COURSE, {}, ASKED)["full_length"] == pytest.approx(1 / 2)


def test_a_cell_without_one_good_request_has_dashes_not_zeros() -> None:
    found = cells.summary(
        frame(request(11, 11, 0, 0, outcome="timeout")), COURSE, {"ttft_ms": 1}, ASKED
    )

    assert found["ttft"]["p50"] is None
    assert found["user_rate"] is None
    assert found["goodput"] == 0
    assert found["output_token_throughput"] == 0


def test_the_time_line_cuts_the_window_into_whole_steps() -> None:
    requests = frame(*[request(second, second + 0.5, 2, 0.1) for second in range(2, 30)])

    steps = windows.frame(requests, COURSE)

    assert steps.start_s.tolist() == [0, 5, 10, 15, 20, 25]
    assert steps.phase.tolist() == ["ramp", "ramp", *["window"] * 4]
    assert steps.output_token_throughput.tolist()[2:] == [2.0] * 4
    assert steps.started.tolist() == [3, 5, 5, 5, 5, 5]


def test_in_flight_is_the_overlap_over_the_span() -> None:
    requests = frame(request(11, 11.2, 2, 0.79), request(29, 29.2, 2, 4))

    # 11 to 12.0 is 1 s, 29 to 30 (the end) is 1 s, of 20
    assert windows.in_flight(requests, 10 * S, 30 * S) == pytest.approx(2 / 20)
