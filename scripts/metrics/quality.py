"""How good a served model still is: perplexity, greedy agreement with a reference, and their uncertainty. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

from metrics.intervals import CONFIDENCE, mean_interval, share_interval


def perplexity(log_probs: Sequence[Sequence[float]]) -> dict[str, Any]:
    """exp(-mean of the natural log-probabilities of all tokens), {value, interval, tokens, passages}.

    The passages are the independent units: within one the tokens depend on each other. See `mean_of_ratio`.
    """
    mean, half = mean_of_ratio(
        [-sum(passage) for passage in log_probs], [len(passage) for passage in log_probs]
    )
    interval = None if half is None else [bounded_exp(mean - half), bounded_exp(mean + half)]
    return {
        "value": bounded_exp(mean),
        "interval": interval,
        "tokens": sum(map(len, log_probs)),
        "passages": len(log_probs),
    }


def perplexity_change(
    log_probs: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]
) -> dict[str, Any]:
    """By how many percent the perplexity lies above the reference's on the same tokens, {percent, interval}.

    Paired: the interval is that of the differences, passage by passage, and so much narrower than those of the two.
    ValueError if the two do not hold the same tokens.
    """
    if [len(passage) for passage in log_probs] != [len(passage) for passage in reference]:
        raise ValueError("the two were not asked about the same tokens")
    worse = [sum(before) - sum(after) for before, after in zip(reference, log_probs, strict=True)]
    mean, half = mean_of_ratio(worse, [len(passage) for passage in log_probs])
    interval = (
        None
        if half is None
        else [100 * (bounded_exp(mean - half) - 1), 100 * (bounded_exp(mean + half) - 1)]
    )
    return {"percent": 100 * (bounded_exp(mean) - 1), "interval": interval}


def bounded_exp(value: float) -> float:
    """exp, at most 1e300: JSON has no infinity."""
    return math.exp(min(value, 690.0))


def mean_of_ratio(totals: Sequence[float], sizes: Sequence[int]) -> tuple[float, float | None]:
    """sum(totals) / sum(sizes), and half the width of its 95 % interval; None below 3 units.

    The ratio estimator of cluster sampling (Cochran, Sampling Techniques, 6.3): its variance is n / (n - 1) times the sum of
    (total - ratio size)², over sum(sizes)²; Student's t with n - 1 degrees of freedom.
    """
    total, size, n = np.asarray(totals, float), np.asarray(sizes, float), len(totals)
    ratio = float(total.sum() / size.sum())
    if n < 3:
        return ratio, None
    error = math.sqrt(n / (n - 1) * float(((total - ratio * size) ** 2).sum())) / float(size.sum())
    return ratio, float(special.stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * error


def agreement(
    answers: Sequence[Sequence[int]], reference: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """How far greedy answers go with the reference's, in tokens of the model's own tokenizer.

    {answers, identical, identical_interval, prefix_mean, prefix_interval, prefix_median, prefix_min, prefix_share, parts_at}:
    `parts_at` is for each answer the first token that differs, from 0, None where they are identical; the prefix of an
    identical answer is its whole length; `prefix_share` is the common part over the reference's length.
    """
    parts = [parting(ours, theirs) for ours, theirs in zip(answers, reference, strict=True)]
    prefixes = [
        len(theirs) if part is None else part for part, theirs in zip(parts, reference, strict=True)
    ]
    identical, length = sum(part is None for part in parts), sum(map(len, reference))
    return {
        "answers": len(parts),
        "identical": identical,
        "identical_interval": share_interval(identical, len(parts)),
        "prefix_mean": float(np.mean(prefixes)) if prefixes else None,
        "prefix_interval": mean_interval(prefixes),
        "prefix_median": float(np.median(prefixes)) if prefixes else None,
        "prefix_min": min(prefixes, default=None),
        "prefix_share": sum(prefixes) / length if length else None,
        "parts_at": parts,
    }


def parting(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """Where two sequences first differ, from 0; None if they are the same."""
    if list(ours) == list(theirs):
        return None
    return next(
        (
            place
            for place, (one, other) in enumerate(zip(ours, theirs, strict=False))
            if one != other
        ),
        min(len(ours), len(theirs)),
    )
