"""Who sends which prompt when, drawn from the seed before the clock starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Prompts drawn for each user of a closed loop in advance; one who outlives them begins again.
DRAWN = 4096
# Keeps the draws of arrivals apart from those of users, which are numbered from 0.
ARRIVALS = 1 << 32


@dataclass(frozen=True)
class User:
    """One who begins `start_ns` after the clock does and sends `prompts` (indices of conversations), each once the one before
    is answered. In a closed loop a user goes through them again and again; in an open loop each arrival is a user of its own.
    """

    number: int
    start_ns: int
    prompts: tuple[int, ...]
    again: bool


@dataclass(frozen=True)
class Shape:
    """The load to be offered: exactly one of `users`, `rate` and `arrivals_s` is set.

    users       closed loop: so many at a time, beginning evenly over `ramp_s`
    rate        open loop: requests a second. arrivals: 'constant', 'poisson', or 'gamma' with `burstiness`, the shape of its
                gaps: 1 is Poisson, less comes in bursts, more is more even
    arrivals_s  open loop: seconds from the first arrival of a trace to each, ascending; prompt i is sent at arrival i
    """

    ramp_s: float
    window_s: float
    users: int | None = None
    rate: float | None = None
    arrivals: str = "poisson"
    burstiness: float = 1.0
    arrivals_s: tuple[float, ...] | None = None


def draw(shape: Shape, prompts: int, follow_s: float, seed: int) -> list[User]:
    """The users of a load; an open loop goes on for `follow_s` after its window, so that what began in it ends under load."""
    if prompts < 1:
        raise ValueError("a schedule needs prompts")
    if shape.users is not None:
        return closed_loop(shape.users, shape.ramp_s, prompts, seed)
    if shape.rate is not None:
        return open_loop(
            arrivals(shape, shape.ramp_s + shape.window_s + follow_s, seed), prompts, seed
        )
    return [
        User(number, round(at * 1e9), (number,), again=False)
        for number, at in enumerate(shape.arrivals_s or ())
    ]


def closed_loop(users: int, ramp_s: float, prompts: int, seed: int) -> list[User]:
    """Users that begin evenly over the ramp, the first at once; each draws from `prompts` with replacement.

    The first user's draws do not depend on how many users there are.
    """
    if users < 1:
        raise ValueError(f"a closed loop needs users, not {users}")
    draws = [
        np.random.default_rng([seed, number]).integers(0, prompts, DRAWN) for number in range(users)
    ]
    return [
        User(
            number, round(ramp_s * 1e9 * number / users), tuple(draws[number].tolist()), again=True
        )
        for number in range(users)
    ]


def arrivals(shape: Shape, until_s: float, seed: int) -> list[float]:
    """Seconds at which requests arrive, below `until_s`. The first comes one gap after the start.

    Gaps have the mean 1 / rate: constant; exponential (Poisson arrivals); or Gamma(k, 1 / (k rate)), whose coefficient of
    variation is 1 / sqrt(k), with k the burstiness, as vLLM's and SGLang's clients name it.
    """
    assert shape.rate
    if shape.arrivals == "constant":
        return [number / shape.rate for number in range(1, math.ceil(shape.rate * until_s))]
    k = shape.burstiness if shape.arrivals == "gamma" else 1.0
    random, moments = np.random.default_rng([seed, ARRIVALS]), np.zeros(1)
    while moments[-1] < until_s:
        moments = np.append(
            moments, moments[-1] + np.cumsum(random.gamma(k, 1 / (k * shape.rate), 1024))
        )
    return [float(moment) for moment in moments[1:] if moment < until_s]


def open_loop(moments: Sequence[float], prompts: int, seed: int) -> list[User]:
    """One user an arrival, each with a prompt drawn with replacement."""
    drawn = np.random.default_rng([seed, ARRIVALS + 1]).integers(0, prompts, len(moments))
    return [
        User(number, round(moment * 1e9), (int(prompt),), again=False)
        for number, (moment, prompt) in enumerate(zip(moments, drawn, strict=True))
    ]
