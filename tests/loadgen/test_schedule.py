from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.schedule import closed_loop


@given(st.integers(1, 50), st.floats(0, 100), st.integers(1, 100), st.integers(0, 2**32))
def test_users_begin_evenly_inside_the_ramp(users: int, ramp_s: float, prompts: int, seed: int) -> None:
    drawn = closed_loop(users, ramp_s, prompts, seed)

    starts = [user.start_ns for user in drawn]
    assert starts[0] == 0
    assert all(start < ramp_s * 1e9 or start == 0 for start in starts)
    assert starts == sorted(starts)
    assert all(0 <= prompt < prompts for user in drawn[:2] for prompt in user.prompts)


def test_the_seed_decides_and_more_users_do_not_change_the_first() -> None:
    assert closed_loop(3, 1, 64, 7) == closed_loop(3, 1, 64, 7)
    assert closed_loop(3, 1, 64, 7)[0].prompts == closed_loop(8, 1, 64, 7)[0].prompts
    assert closed_loop(3, 1, 64, 7)[0].prompts != closed_loop(3, 1, 64, 8)[0].prompts
    assert closed_loop(3, 1, 64, 7)[0].prompts != closed_loop(3, 1, 64, 7)[1].prompts


@pytest.mark.parametrize(("users", "prompts"), [(0, 1), (1, 0)])
def test_nobody_and_nothing_are_refused(users: int, prompts: int) -> None:
    with pytest.raises(ValueError, match="needs users and prompts"):
        closed_loop(users, 1, prompts, 0)
