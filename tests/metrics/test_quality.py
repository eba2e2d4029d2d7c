from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metrics import quality

passages = st.lists(
    st.lists(st.floats(-20, -0.01), min_size=2, max_size=12), min_size=3, max_size=8
)


def test_a_model_that_gives_each_token_one_chance_in_eight_has_a_perplexity_of_eight() -> None:
    found = quality.perplexity([[math.log(1 / 8)] * length for length in (3, 5, 9)])

    assert found == {
        "value": pytest.approx(8),
        "interval": [pytest.approx(8), pytest.approx(8)],
        "tokens": 17,
        "passages": 3,
    }


def test_the_interval_is_that_of_a_ratio_over_passages() -> None:
    # three passages of equal length: the ratio estimator is then the mean, and Student's t of n = 3 is 4.3027
    means = (1.0, 2.0, 3.0)
    found = quality.perplexity([[-mean] * 10 for mean in means])

    assert found["value"] == pytest.approx(math.e**2)
    assert [math.log(end) for end in found["interval"]] == pytest.approx(
        [2 - 4.3027 / math.sqrt(3), 2 + 4.3027 / math.sqrt(3)], abs=1e-3
    )


def test_two_passages_carry_no_interval() -> None:
    assert quality.perplexity([[-1.0], [-2.0]])["interval"] is None


def test_the_change_is_paired_so_that_a_constant_loss_is_certain() -> None:
    """The passages differ much from each other; every token loses a tenth of a nat. Unpaired, that would be lost in the noise."""
    reference = [[-1.0] * 20, [-3.0] * 20, [-5.0] * 20]
    found = quality.perplexity_change(
        [[value - 0.1 for value in passage] for passage in reference], reference
    )

    percent = 100 * (math.exp(0.1) - 1)
    assert found["percent"] == pytest.approx(percent)
    assert found["interval"] == pytest.approx([percent, percent])


def test_other_tokens_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="same tokens"):
        quality.perplexity_change([[-1.0]], [[-1.0, -1.0]])


@given(passages)
def test_a_model_is_no_worse_than_itself(told: list[list[float]]) -> None:
    found = quality.perplexity_change(told, told)

    assert found["percent"] == 0
    assert found["interval"] == [0, 0]


@given(passages)
def test_the_value_lies_in_its_interval_and_no_order_of_passages_changes_it(
    told: list[list[float]],
) -> None:
    found, turned = quality.perplexity(told), quality.perplexity(told[::-1])

    assert found["interval"][0] <= found["value"] * (1 + 1e-12)
    assert found["value"] <= found["interval"][1] * (1 + 1e-12)
    assert turned["value"] == pytest.approx(found["value"])


def test_a_hopeless_model_has_a_finite_perplexity() -> None:
    assert quality.perplexity([[-1e6]] * 3)["value"] < math.inf


@pytest.mark.parametrize(
    ("ours", "theirs", "part"),
    [
        ([1, 2, 3], [1, 2, 3], None),
        ([1, 2, 3], [1, 9, 3], 1),
        ([9], [1], 0),
        ([1, 2], [1, 2, 3], 2),
        ([1, 2, 3], [1, 2], 2),
        ([], [], None),
        ([], [1], 0),
    ],
)
def test_where_answers_part(ours: list[int], theirs: list[int], part: int | None) -> None:
    assert quality.parting(ours, theirs) == part


def test_agreement_of_crafted_answers() -> None:
    reference = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]
    found = quality.agreement([[1, 2, 3, 4], [5, 6, 0, 0], [0]], reference)

    assert (found["answers"], found["identical"], found["parts_at"]) == (3, 1, [None, 2, 0])
    assert (
        found["prefix_mean"],
        found["prefix_median"],
        found["prefix_min"],
        found["prefix_share"],
    ) == (2, 2, 0, 0.5)


@given(st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=8))
def test_answers_agree_with_themselves(answers: list[list[int]]) -> None:
    found = quality.agreement(answers, answers)

    assert found["identical"] == len(answers)
    assert set(found["parts_at"]) <= {None}


def test_no_answers_agree_in_nothing() -> None:
    assert quality.agreement([], [])["prefix_mean"] is None
