"""Percentiles and intervals, which refuse where the samples do not carry them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import special

CONFIDENCE = 0.95
Values = Sequence[float] | npt.NDArray[np.float64]


def percentile(values: Values, q: float) -> float | None:
    """The q-th percentile, linearly interpolated between order statistics (Hyndman and Fan, type 7).

    None with fewer than 100 / (100 - q) values: p50 needs 2, p90 10, p99 100, so that at least one is expected beyond it.
    """
    if len(values) < needed(q):
        return None
    return float(np.percentile(values, q))


def needed(q: float) -> int:
    """The least number of values for the q-th percentile."""
    return math.ceil(round(100 / (100 - q), 9))


def median_interval(values: Values) -> tuple[float, float] | None:
    """Confidence interval of the median from order statistics: no assumption on the distribution, independent values.

    The ranks are the binomial quantiles of n, 1/2 (David and Nagaraja, Order Statistics, 7.1). None below 6 values, where
    even the whole range covers less than 95 %.
    """
    if len(values) < 6:
        return None
    at_most = special.bdtr(np.arange(len(values) + 1), len(values), 0.5)
    low = int(np.searchsorted(at_most, (1 - CONFIDENCE) / 2))
    ordered = np.sort(values)
    return float(ordered[max(0, low - 1)]), float(ordered[min(len(values) - 1, len(values) - low)])


def mean_interval(values: Values) -> tuple[float, float] | None:
    """Student's t interval of the mean of values that cannot be negative; None below 3 values."""
    if len(values) < 3:
        return None
    half = float(
        special.stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)
        * np.std(values, ddof=1)
        / math.sqrt(len(values))
    )
    mean = float(np.mean(values))
    return max(0.0, mean - half), mean + half


def share_interval(good: int, of: int) -> list[float] | None:
    """Wilson's score interval of a share; None of nothing (Wilson, JASA 22, 1927)."""
    if of == 0:
        return None
    z = float(special.ndtri((1 + CONFIDENCE) / 2))
    share = good / of
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z / (1 + z * z / of) * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return [max(0.0, middle - half), min(1.0, middle + half)]
