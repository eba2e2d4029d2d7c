"""Records made by hand, and the request frame that follows from them."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_stream import HEAD, USAGE, delta, sse
from tokenizers import Tokenizer

from loadgen import record
from loadgen.reader import read
from metrics import requests

FINISH = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


def records(*reads: tuple[int, bytes], **fields: Any) -> pd.DataFrame:
    """One record whose reads are (time, bytes of the body); the head came at 105."""
    given = {
        "user": 0,
        "sequence": 0,
        "prompt": 0,
        "turn": 0,
        "phase": "load",
        "scheduled_ns": 90,
        "sent_ns": 100,
        "done_ns": 999,
        "status": 200,
        "outcome": "complete",
    } | fields
    if reads:
        reads = ((105, HEAD), *reads)
    stamps = array("q", [part for time, _ in reads for part in (0, time)])
    made = record.Record(
        **given,
        stamps=stamps,
        read_bytes=array("i", [len(data) for _, data in reads]),
        wire=b"".join(data for _, data in reads),
    )
    frame = pd.DataFrame([{name: getattr(made, name) for name in record.SCHEMA.names}])
    return frame.astype(dict.fromkeys(("scheduled_ns", "sent_ns", "done_ns", "status"), "Int64"))


def row(frame: pd.DataFrame) -> Any:
    [found] = list(frame.itertuples())
    return found


def test_times_and_counts_of_an_ordinary_answer(tokenizer: Tokenizer) -> None:
    reads = [
        (110, sse(delta(role="assistant", content=""))),
        (130, sse(delta(content="one"))),
        (150, sse(delta(content=" two three"))),
        (160, sse(FINISH, USAGE, b"[DONE]")),
    ]

    found = row(requests.frame(records(*reads), tokenizer))

    assert found.outcome == "ok"
    assert found.ttft_headers_ns == 105 - 100
    assert found.ttft_frame_ns == 110 - 100
    assert found.ttft_ns == 130 - 100
    assert found.ttft_scheduled_ns == 130 - 90
    assert found.e2e_latency_ns == 150 - 100
    assert found.tpot_ns == (150 - 130) / (3 - 1)
    assert (found.tokens_usage, found.tokens_retokenized, found.tokens_events, found.tokens) == (
        3,
        3,
        2,
        3,
    )
    assert found.event_ns.tolist() == [130, 150]
    assert found.event_tokens.tolist() == [1, 2]
    assert found.text == "one two three"
    assert found.prompt_tokens == 5


def test_reasoning_is_the_first_token_and_content_the_first_of_the_answer(
    tokenizer: Tokenizer,
) -> None:
    reads = [
        (120, sse(delta(reasoning_content="hm"))),
        (150, sse(delta(content="yes"))),
        (160, sse(FINISH)),
    ]

    found = row(requests.frame(records(*reads), tokenizer))

    assert found.ttft_ns == 120 - 100
    assert found.ttft_answer_ns == 150 - 100


def test_without_usage_the_text_is_tokenized_once(tokenizer: Tokenizer) -> None:
    found = row(
        requests.frame(
            records((120, sse(delta(content="one tw"))), (150, sse(delta(content="o"), FINISH))),
            tokenizer,
        )
    )

    assert pd.isna(found.tokens_usage)
    assert found.tokens == 2
    assert found.event_tokens.tolist() == [1, 1], "the second token ends with the second event"


ENDS = [
    ("ok", [(120, sse(delta(content="a"), FINISH))], {}),
    ("ok", [(120, sse(delta(content="a"), b"[DONE]"))], {}),
    ("truncated", [(120, sse(delta(content="a")))], {}),
    ("empty", [(120, sse(delta(role="assistant"), FINISH))], {}),
    ("empty", [(120, sse(delta(content=""), FINISH, USAGE))], {}),
    (
        "error_event",
        [(120, sse(delta(content="a"), {"error": {"message": "boom"}}, b"[DONE]"))],
        {},
    ),
    ("error_event", [(120, sse(delta(content="a"), b"{broken", FINISH))], {}),
    ("truncated", [], {}),
    ("disconnected", [(120, sse(delta(content="a")))], {"outcome": "disconnected"}),
    ("timeout", [], {"outcome": "timeout", "status": None}),
    ("connect_error", [], {"outcome": "connect_error", "sent_ns": None, "status": None}),
    ("http_error", [(120, b"oops")], {"outcome": "http_error", "status": 500}),
]


@pytest.mark.parametrize(("outcome", "reads", "fields"), ENDS)
def test_what_became_of_a_request(
    outcome: str, reads: list[tuple[int, bytes]], fields: dict[str, Any], tokenizer: Tokenizer
) -> None:
    found = row(requests.frame(records(*reads, **fields), tokenizer))

    assert found.outcome == outcome
    if not found.text:
        assert pd.isna(found.ttft_ns)
        assert pd.isna(found.tpot_ns), (
            "an answer without text has no time to first token, not one of zero"
        )


@given(
    st.lists(st.sampled_from(["a", " b", "cd ef", "  ", "x y z"]), min_size=1, max_size=20),
    st.integers(0, 200),
)
def test_spread_gives_every_token_to_some_event(texts: list[str], tokens: int) -> None:
    joined = "".join(texts)
    ends = [
        index + 1
        for index, character in enumerate(joined)
        if character != " " and (index + 1 == len(joined) or joined[index + 1] == " ")
    ]

    shares = requests.spread(tokens, ends, [len(text) for text in texts])

    assert shares.shape == (len(texts),)
    assert (shares >= 0).all()
    assert np.isclose(shares.sum(), tokens)


def test_nanoseconds_survive_a_missing_value(tmp_path: Any) -> None:
    """More than 2**53 ns, 104 days of uptime, are not rounded by a column that has a gap."""
    late = 2**53 + 1
    with record.writing(tmp_path / "r.arrow") as writer:
        for sent in (late, None):
            writer.put(record.Record(0, 0, 0, 0, "load", late, sent_ns=sent))

    assert read(tmp_path / "r.arrow").sent_ns[0] == late
