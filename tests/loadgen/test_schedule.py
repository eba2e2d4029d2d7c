from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.schedule import Shape, arrivals, closed_loop, draw


@given(st.integers(1, 50), st.floats(0, 100), st.integers(1, 100), st.integers(0, 2**32))
def test_users_begin_evenly_inside_the_ramp(
    users: int, ramp_s: float, prompts: int, seed: int
) -> None:
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


def test_nobody_and_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="needs users"):
        closed_loop(0, 1, 1, 0)
    with pytest.raises(ValueError, match="needs prompts"):
        draw(Shape(1, 1, users=1), 0, 1, 0)


@given(
    st.sampled_from(["constant", "poisson", "gamma"]),
    st.floats(0.1, 200),
    st.floats(0.2, 5),
    st.floats(0.1, 60),
    st.integers(0, 99),
)
def test_arrivals_go_forward_and_end_in_time(
    process: str, rate: float, burstiness: float, until_s: float, seed: int
) -> None:
    shape = Shape(0, until_s, rate=rate, arrivals=process, burstiness=burstiness)

    drawn = arrivals(shape, until_s, seed)

    assert drawn == sorted(drawn)
    assert all(0 < moment < until_s for moment in drawn)
    assert drawn == arrivals(shape, until_s, seed)


# Coefficients of variation of the gaps: none; 1 of an exponential; 1 / sqrt(k) of a gamma of shape k.
SPREADS = [("constant", 1.0, 0.0), ("poisson", 1.0, 1.0), ("gamma", 0.25, 2.0), ("gamma", 4.0, 0.5)]


@pytest.mark.parametrize(("process", "burstiness", "variation"), SPREADS)
def test_gaps_have_the_mean_and_the_spread_that_was_asked(
    process: str, burstiness: float, variation: float
) -> None:
    gaps = np.diff(
        arrivals(Shape(0, 1, rate=50, arrivals=process, burstiness=burstiness), 2000, seed=3)
    )

    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(variation, abs=0.05)


def test_an_open_loop_goes_on_after_its_window_and_each_arrival_is_a_user() -> None:
    users = draw(
        Shape(ramp_s=2, window_s=5, rate=10, arrivals="constant"), prompts=3, follow_s=4, seed=1
    )

    assert users[-1].start_ns == pytest.approx(10.9e9)
    assert {len(user.prompts) for user in users} == {1}
    assert not any(user.again for user in users)
    assert {prompt for user in users for prompt in user.prompts} == {0, 1, 2}


def test_a_trace_is_sent_in_its_order_at_its_times() -> None:
    users = draw(Shape(0, 1, arrivals_s=(0.0, 0.5, 0.5, 2.0)), prompts=4, follow_s=0, seed=1)

    assert [(user.start_ns, user.prompts) for user in users] == [
        (0, (0,)),
        (500_000_000, (1,)),
        (500_000_000, (2,)),
        (2_000_000_000, (3,)),
    ]
