from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

import stages
from assess import FIGURES, assess
from conftest import ROOT
from pipeline.artifact import Manifest, sha256


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    """One token a word."""
    made = Tokenizer(
        models.WordLevel(
            {
                word: number
                for number, word in enumerate(
                    ["[UNK]", "the", "cat", "sat", "on", "a", "mat", "dog"]
                )
            },
            unk_token="[UNK]",
        )
    )
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


REFERENCE: dict[str, Any] = {
    "log_probs": [[-1.0, -2.0], [-3.0], [-2.0, -1.5, -2.5]],
    "answers": ["the cat sat on a mat", "a dog sat"],
}


def test_a_model_that_says_the_same_loses_nothing(words: Tokenizer) -> None:
    found = assess(dict(REFERENCE), REFERENCE, words)

    assert found["perplexity"] == found["reference_perplexity"]
    assert found["perplexity_change"] == {"percent": 0, "interval": [0, 0]}
    assert found["agreement"]["identical"] == 2
    assert (found["example"], found["damaged"]) == (None, 0)


def test_the_answer_that_parts_first_is_shown(words: Tokenizer) -> None:
    found = assess({"answers": ["the cat sat on a dog", "the dog sat"]}, REFERENCE, words)

    assert found["agreement"]["parts_at"] == [5, 0]
    assert found["example"] == {"reference": "a dog sat", "served": "the dog sat", "parts_at": 0}
    assert found["perplexity"] is None, "the API does not tell"


def test_without_a_reference_there_is_a_perplexity_and_no_change(words: Tokenizer) -> None:
    found = assess(
        {
            "log_probs": [[-1.0], [-1.0], [-1.0]],
            "answers": ["a cat"],
            "tasks": {"t": {"acc,none": 0.5}},
        },
        None,
        words,
    )

    assert found["perplexity"]["value"] == pytest.approx(math.e)
    assert (found["perplexity_change"], found["agreement"], found["tasks"]) == (
        None,
        None,
        {"t": {"acc,none": 0.5}},
    )


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_probabilities_that_are_none_make_no_figure(words: Tokenizer, value: float) -> None:
    found = assess({"log_probs": [[-1.0, value], [-1.0], [-1.0, -1.0, -1.0]]}, REFERENCE, words)

    assert found["damaged"] == 1
    assert found["perplexity"] is None


def test_questions_that_failed_have_the_same_figures_and_they_are_none(words: Tokenizer) -> None:
    found = assess({"failure": {"kind": "server_died"}}, REFERENCE, words)

    assert set(found) == set(FIGURES)
    assert {name for name, value in found.items() if value is not None} == {"reference_perplexity"}


def test_a_reference_whose_probabilities_are_none_is_no_reference(
    tmp_path: Path, words: Tokenizer
) -> None:
    """A NaN in the reference would make any difference NaN, and NaN is beyond no limit."""
    (tmp_path / "model").mkdir()
    words.save(str(tmp_path / "model/tokenizer.json"))
    (tmp_path / "quality.json").write_text(
        json.dumps({"key": "q", "failure": None, "log_probs": [[-1.0, -2.0]]})
    )
    answered = {"quality.json": {"sha256": sha256(tmp_path / "quality.json"), "bytes": 1}}
    (tmp_path / "session.json").write_text(json.dumps({"parts": answered}))
    (tmp_path / "reference.json").write_text('{"log_probs": [[-1.0, NaN]], "answers": []}')
    facts = {"reference": "reference.json"}
    Manifest("reference", "r", {}, "", str(tmp_path), [], facts).save(tmp_path / "r.json")
    model = Manifest("download", "d", {}, "", str(tmp_path), [], {"tokenizer": "model"})
    model.save(tmp_path / "d.json")
    inputs = {"session": "session.json", "reference": "r.json", "model": "d.json"}
    arguments = stages.arguments(
        tmp_path,
        "out",
        {"questions": "q"},
        **{name: tmp_path / path for name, path in inputs.items()},
    )

    subprocess.run([sys.executable, ROOT / "scripts/assess.py", *arguments], check=True)

    found = json.loads((tmp_path / "out.json").read_text())
    assert found["perplexity_change"] is None
    assert "not all finite" in found["no_reference"]
    assert found["perplexity"]["value"] == pytest.approx(math.exp(1.5))
