from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import ROOT
from data import sampling
from pipeline.failure import Failure
from pipeline.spec import Prompts

OURS = ROOT / "prompts/showdown.jsonl"


def asked(**changes: Any) -> Prompts:
    return Prompts(
        **(
            {
                "source": "file",
                "columns": ("context", "instruction"),
                "join": "\n\n",
                "min_tokens": 0,
                "max_tokens": 1000,
            }
            | changes
        )
    )


def words(text: str) -> int:
    return len(text.split())


def test_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    """JSON may hold the other characters that Python takes for ends of lines."""
    rows = [{"context": "a\u2028b", "instruction": "c\u0085d"}, {"context": "", "instruction": "e"}]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "p.jsonl").write_text(text)

    assert sampling.rows(tmp_path / "p.jsonl", asked()) == rows


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(b"\xff\xfe\x00")

    with pytest.raises(Failure, match=r"p\.jsonl is not UTF-8 text"):
        sampling.rows(tmp_path / "p.jsonl", asked())


def test_our_own_set_covers_the_eight_categories() -> None:
    rows = sampling.rows(OURS, asked())

    assert len(rows) >= 60
    assert Counter(row["category"] for row in rows) == dict.fromkeys(
        [
            "brainstorming",
            "classification",
            "closed_qa",
            "creative_writing",
            "general_qa",
            "information_extraction",
            "open_qa",
            "summarization",
        ],
        len(rows) // 8,
    )
    assert len({row["instruction"] + row["context"] for row in rows}) == len(rows)


def test_context_and_instruction_are_joined_and_an_empty_one_leaves_no_seam() -> None:
    rows = [
        {"instruction": "Why?", "context": "Rain fell."},
        {"instruction": "Who?", "context": " "},
    ]

    chosen = sampling.choose(rows, asked(), 1, words)

    assert sorted(one["turns"] for one in chosen) == [["Rain fell.\n\nWhy?"], ["Who?"]]


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=40),
    st.integers(1, 30),
    st.integers(0, 20),
    st.integers(1, 40),
    st.integers(0, 9),
)
def test_the_choice_keeps_the_bounds_and_repeats_nothing(
    lengths: list[int], low: int, more: int, count: int, seed: int
) -> None:
    rows = [{"instruction": "w " * length, "context": ""} for length in lengths]
    fitting = [number for number, length in enumerate(lengths) if low <= length <= low + more]
    wanted = asked(min_tokens=low, max_tokens=low + more, count=count)
    if not fitting:
        with pytest.raises(Failure, match="No prompt has between"):
            sampling.choose(rows, wanted, seed, words)
        return

    chosen = sampling.choose(rows, wanted, seed, words)

    assert len(chosen) == min(count, len(fitting))
    assert len({one["id"] for one in chosen}) == len(chosen)
    assert {one["id"] for one in chosen} <= set(fitting)
    assert all(one["tokens"] == lengths[one["id"]] for one in chosen)
    assert chosen == sampling.choose(rows, wanted, seed, words)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{broken", "line 2: not JSON"),
        (
            json.dumps({"question": "?"}),
            "line 2: no column context, instruction; there are question",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, words: str) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"instruction": "a", "context": ""}) + "\n" + line + "\n")

    with pytest.raises(Failure, match="p.jsonl, " + words):
        sampling.rows(file, asked())
