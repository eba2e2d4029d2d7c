from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metrics.intervals import mean_interval, median_interval, needed, percentile, share_interval


@pytest.mark.parametrize(("q", "least"), [(50, 2), (90, 10), (95, 20), (99, 100), (99.9, 1000)])
def test_a_percentile_without_enough_samples_is_refused(q: float, least: int) -> None:
    assert needed(q) == least
    assert percentile([1.0] * (least - 1), q) is None
    assert percentile([1.0] * least, q) == 1.0


def test_percentiles_interpolate_between_order_statistics() -> None:
    # type 7: rank (n - 1) q = 9 * 0.9 = 8.1, so 9 + 0.1 * (10 - 9)
    assert percentile(list(range(1, 11)), 90) == pytest.approx(9.1)


def test_median_interval_ranks() -> None:
    # n = 6: P(B <= 0) = 1/64 < 2.5 %, so the whole range: coverage 1 - 2/64
    assert median_interval([3, 1, 2, 6, 5, 4]) == (1, 6)
    # n = 20: ranks 6 and 15 (David and Nagaraja; coverage 95.9 %)
    assert median_interval(list(range(1, 21))) == (6, 15)
    assert median_interval([1, 2, 3, 4, 5]) is None


@given(st.lists(st.floats(0, 1e6), min_size=6, max_size=200))
def test_the_median_lies_in_its_interval(values: list[float]) -> None:
    interval = median_interval(values)

    assert interval is not None
    assert interval[0] <= np.median(values) <= interval[1]


def test_median_interval_covers_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    spans = [median_interval(random.exponential(size=30)) for _ in range(2000)]
    covered = np.mean([low <= np.log(2) <= high for low, high in spans if low is not None])

    assert 0.94 < covered < 0.985


def test_mean_interval_is_students() -> None:
    # mean 12, s = 1, n = 3: t(0.975, 2) = 4.3027, half = 4.3027 / sqrt(3)
    assert mean_interval([11, 12, 13]) == pytest.approx((12 - 2.4841, 12 + 2.4841), abs=1e-3)
    assert mean_interval([1, 2, 3]) == pytest.approx((0, 2 + 2.4841), abs=1e-3), (
        "a rate is not negative"
    )
    assert mean_interval([1, 2]) is None


@pytest.mark.parametrize(
    ("good", "of", "interval"),
    [(10, 12, (0.552, 0.953)), (0, 12, (0, 0.243)), (12, 12, (0.757, 1))],
)
def test_the_interval_of_a_share_is_wilsons(
    good: int, of: int, interval: tuple[float, float]
) -> None:
    assert share_interval(good, of) == pytest.approx(interval, abs=1e-3)


def test_nothing_has_no_share() -> None:
    assert share_interval(0, 0) is None
