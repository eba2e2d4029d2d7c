"""Who sends which prompt when, drawn from the seed before the clock starts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Prompts drawn for each user in advance; one who outlives them begins again.
DRAWN = 4096


@dataclass(frozen=True)
class User:
    """A closed-loop user: begins `start_ns` after the clock does, then sends `prompts` (indices) one after another."""

    number: int
    start_ns: int
    prompts: tuple[int, ...]


def closed_loop(users: int, ramp_s: float, prompts: int, seed: int) -> list[User]:
    """Users that begin evenly over the ramp, the first at once; each draws from `prompts` with replacement.

    The first user's draws do not depend on how many users there are.
    """
    if users < 1 or prompts < 1:
        raise ValueError(f"a schedule needs users and prompts, not {users} and {prompts}")
    return [User(number, round(ramp_s * 1e9 * number / users), tuple(np.random.default_rng([seed, number]).integers(0, prompts, DRAWN).tolist())) for number in range(users)]
