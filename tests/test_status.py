"""Figures made by hand, and whether what is served is still the model."""

from __future__ import annotations

import math
from typing import Any

import pytest

from comparison.status import Status, status

LIMITS = {"perplexity_percent": 5.0, "common_prefix_tokens": 0}
UNKNOWN = {
    "failure": None,
    "perplexity_change": None,
    "agreement": None,
    "damaged": None,
    "no_reference": None,
}


def judged(percent: float, median: float = 20) -> dict[str, Any]:
    told = {"percent": percent, "interval": None}
    return UNKNOWN | {"perplexity_change": told, "agreement": {"prefix_median": median}}


# The two known cases: AutoAWQ unpatched on a CPU (13,669 against 18.5), and OpenVINO's reading of a Q4_1 GGUF (23.4 against 18.5).
@pytest.mark.parametrize(
    ("perplexity", "comparable"),
    [(18.5, True), (19.3, True), (19.5, False), (23.4, False), (13669, False), (17.0, True)],
)
def test_what_lies_too_far_above_is_not_comparable(perplexity: float, comparable: bool) -> None:
    found = status(judged(100 * (perplexity / 18.5 - 1)), LIMITS)

    assert (found.reasons == ()) == found.comparable == comparable
    assert comparable or "its perplexity is" in found.reasons[0]


def test_a_difference_that_is_no_number_makes_nothing_comparable() -> None:
    assert status(judged(math.nan), LIMITS).comparable is False


def test_a_wrong_template_is_seen_by_where_answers_differ() -> None:
    limits = LIMITS | {"common_prefix_tokens": 3}
    reason = (
        "half of its greedy answers differ from the unquantized model's before token 2 (limit: 3)"
    )

    assert status(judged(0, 2), limits) == Status("not comparable", (reason,))
    assert status(judged(0, 3), limits) == Status("comparable")
    assert status(UNKNOWN, limits) == Status("not judged"), "what is not known is no reason"


def test_probabilities_that_are_none_are_a_reason() -> None:
    found = status(UNKNOWN | {"damaged": 3, "agreement": {"prefix_median": 9}}, LIMITS)

    assert (found.word, found.comparable) == ("not comparable", False)
    assert "3 tokens a probability that is not a finite number" in found.reasons[0]


def test_what_cannot_be_told_is_said_and_is_not_called_comparable() -> None:
    failed = UNKNOWN | {"failure": {"kind": "server_died", "reason": "it died"}}
    alone = UNKNOWN | {"no_reference": "too large"}
    answers = UNKNOWN | {"agreement": {"prefix_median": 9}}

    assert status(failed, LIMITS) == Status("failed", ("it died",))
    assert status(alone, LIMITS) == Status("no reference", ("too large",))
    assert status(None, LIMITS) == Status("not judged")
    assert [status(one, LIMITS).comparable for one in (failed, alone, None)] == [None] * 3
    assert (status(answers, LIMITS).word, status(answers, LIMITS).comparable) == (
        "by answers only",
        True,
    )
