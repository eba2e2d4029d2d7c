"""Public trace layouts, and texts of their lengths."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from data import traces
from data.traces import Arrival
from pipeline.failure import Failure
from pipeline.spec import Prompts

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:16:00.0000000,879,55
"""
MOONCAKE = [
    {"timestamp": 27000, "input_length": 600, "output_length": 5, "hash_ids": [46, 47]},
    {"timestamp": 30500, "input_length": 1024, "output_length": 500, "hash_ids": [46, 99]},
]


@pytest.fixture
def azure(tmp_path: Path) -> Path:
    path = tmp_path / "azure.csv"
    path.write_text(AZURE)
    return path


@pytest.fixture
def mooncake(tmp_path: Path) -> Path:
    path = tmp_path / "mooncake.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in MOONCAKE))
    return path


def test_azure(azure: Path) -> None:
    found = traces.read(azure, "azure", None)

    assert [(arrival.isl, arrival.osl) for arrival in found] == [(374, 44), (396, 109), (879, 55)]
    assert [arrival.at_s for arrival in found] == pytest.approx([0, 4.314579, 13.31941])
    assert len(traces.read(azure, "azure", 2)) == 2


def test_mooncake(mooncake: Path) -> None:
    assert traces.read(mooncake, "mooncake", None) == [
        Arrival(0, 600, 5, (46, 47)),
        Arrival(3.5, 1024, 500, (46, 99)),
    ]


BAD = [
    (
        "azure",
        "TIMESTAMP,Tokens\n2023-11-16 18:15:46,3\n",
        "request 1: not the layout 'azure': there is no 'ContextTokens'",
    ),
    ("azure", "TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,3,4\n", "request 1"),
    ("azure", AZURE + "2023-11-16 18:00:00,3,4\n", "request 4: .* its time goes back"),
    ("azure", AZURE + "2023-11-16 18:17:00,0,4\n", "request 4: .* a request of 0 tokens"),
    ("mooncake", "{broken\n", "request 1: not the layout 'mooncake'"),
    ("mooncake", json.dumps(MOONCAKE[0]) + "\n[1]\n", "request 2: not the layout 'mooncake'"),
]


@pytest.mark.parametrize(("layout", "text", "words"), BAD)
def test_a_file_of_another_layout_is_told_with_its_first_bad_request(
    tmp_path: Path, layout: str, text: str, words: str
) -> None:
    (tmp_path / "t").write_text(text)

    with pytest.raises(Failure, match=words):
        traces.read(tmp_path / "t", layout, None)


@pytest.fixture
def passages(tokenizer: Tokenizer) -> traces.Passages:
    return traces.Passages(" ".join(f"w{number}" for number in range(3000)), tokenizer)


def test_texts_have_the_lengths_of_the_trace_and_keep_its_order(
    azure: Path, passages: traces.Passages
) -> None:
    asked = Prompts("trace", (), "", min_tokens=380, max_tokens=1000)
    arrivals = traces.read(azure, "azure", None)

    made = traces.replay(arrivals, asked, 1, passages, lambda text: len(text.split()))

    assert [one["tokens"] for one in made] == [396, 879]
    assert [one["max_tokens"] for one in made] == [109, 55]
    assert [one["at_s"] for one in made] == pytest.approx([0, 9.004831])
    assert made == traces.replay(arrivals, asked, 1, passages, lambda text: len(text.split()))
    assert (
        made[0]["turns"]
        != traces.replay(arrivals, asked, 2, passages, lambda text: len(text.split()))[0]["turns"]
    )


def test_equal_blocks_are_equal_text_and_others_are_not(
    mooncake: Path, passages: traces.Passages
) -> None:
    first, second = (
        passages.prompt(arrival, number, 1).split()
        for number, arrival in enumerate(traces.read(mooncake, "mooncake", None))
    )

    assert (len(first), len(second)) == (600, 1024)
    assert first[:512] == second[:512]
    assert first[512:600] != second[512:600]


def test_a_trace_of_which_nothing_fits_is_refused(azure: Path, passages: traces.Passages) -> None:
    with pytest.raises(
        Failure, match="No prompt has between 0 and 10 tokens; they have 374 to 879"
    ):
        traces.replay(
            traces.read(azure, "azure", None), Prompts("trace", (), "", 0, 10), 1, passages, len
        )
