from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from pipeline.failure import Failure
from texts import blocks, passages

TEXTS = [
    " ".join(["word"] * number + ["else"] * (5 - number)) for number in range(5)
] * 2  # five tokens each


def test_blocks_have_one_length_and_come_from_the_seed(tokenizer: Tokenizer) -> None:
    made = blocks(TEXTS, tokenizer, 6, 8, seed=1)

    assert [len(block) for block in made] == [8] * 6
    assert made == blocks(TEXTS, tokenizer, 6, 8, seed=1)
    assert made != blocks(TEXTS, tokenizer, 6, 8, seed=2)


@given(samples=st.integers(1, 60), length=st.integers(8, 60))
def test_a_set_that_is_too_short_is_refused_with_the_numbers(
    tokenizer: Tokenizer, samples: int, length: int
) -> None:
    able = 50 // length
    if samples <= able:
        assert len(blocks(TEXTS, tokenizer, samples, length, 0)) == samples
        return
    with pytest.raises(
        Failure,
        match=rf"yields {able} blocks of {length} tokens \(50 tokens in 10 texts\); {samples} are asked for",
    ) as refused:
        blocks(TEXTS, tokenizer, samples, length, 0)
    assert "calibration.samples" in refused.value.remedy


def test_a_passage_of_one_token_has_nothing_to_predict(tokenizer: Tokenizer) -> None:
    assert passages(["word and more", "word", ""], tokenizer) == [[0, 1, 1]]
