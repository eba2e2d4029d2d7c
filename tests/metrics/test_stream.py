"""Byte streams made by hand, and what they mean."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.stream import Event, answer
from loadgen.wire import frames

HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


def sse(*values: object, end: bytes = b"\n") -> bytes:
    return b"".join(
        b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + end + end
        for value in values
    )


def delta(**fields: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


def events(body: bytes, read_ns: list[int], read_bytes: list[int]) -> list[Event]:
    """Events of a body whose first read also brought the head."""
    found, head_ns = answer(HEAD + body, read_ns, [len(HEAD) + read_bytes[0], *read_bytes[1:]])
    assert head_ns == read_ns[0]
    return found


USAGE = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3}}

# name, bytes, the events they hold (times aside)
TABLE = [
    (
        "role-only first chunk is no text",
        sse(delta(role="assistant"), delta(content="a")),
        [Event(7), Event(7, content="a")],
    ),
    (
        "empty content is no text",
        sse(delta(role="assistant", content=""), delta(content="a")),
        [Event(7), Event(7, content="a")],
    ),
    ("null content is no text", sse(delta(content=None)), [Event(7)]),
    (
        "several tokens in a chunk stay one event",
        sse(delta(content="one two three")),
        [Event(7, content="one two three")],
    ),
    (
        "CRLF",
        sse(delta(content="a"), delta(content="b"), end=b"\r\n"),
        [Event(7, content="a"), Event(7, content="b")],
    ),
    ("lone CR", sse(delta(content="a"), end=b"\r"), [Event(7, content="a")]),
    (
        "comments and pings",
        b": ping\n\n" + sse(delta(content="a")) + b":\n\n: ping - 2026\n\n",
        [Event(7, content="a")],
    ),
    (
        "other fields",
        b"event: message\nid: 3\nretry: 10\n" + sse(delta(content="a")),
        [Event(7, content="a")],
    ),
    ("no space after the colon", b'data:{"choices": [{"text": "a"}]}\n\n', [Event(7, content="a")]),
    (
        "usage in its own frame",
        sse(delta(content="a"), USAGE, b"[DONE]"),
        [Event(7, content="a"), Event(7, usage=USAGE["usage"]), Event(7, done=True)],
    ),
    (
        "usage with the last content",
        sse(delta(content="a") | {"usage": {"completion_tokens": 1}}),
        [Event(7, content="a", usage={"completion_tokens": 1})],
    ),
    ("null usage", sse(delta(content="a") | {"usage": None}), [Event(7, content="a")]),
    (
        "error event mid-stream",
        sse(delta(content="a"), {"error": {"message": "boom", "code": 500}}),
        [Event(7, content="a"), Event(7, error="boom")],
    ),
    ("error as a string", sse({"error": "boom"}), [Event(7, error="boom")]),
    (
        "connection cut mid-stream: the unfinished event is none",
        sse(delta(content="a")) + b'data: {"choices": [{"del',
        [Event(7, content="a")],
    ),
    (
        "cut before the blank line",
        sse(delta(content="a")) + b'data: {"choices": []}\n',
        [Event(7, content="a")],
    ),
    (
        "reasoning",
        sse(delta(reasoning_content="hm"), delta(reasoning="hm"), delta(content="a")),
        [Event(7, reasoning="hm"), Event(7, reasoning="hm"), Event(7, content="a")],
    ),
    (
        "plain completions",
        sse({"choices": [{"text": "a", "finish_reason": "stop"}]}),
        [Event(7, content="a", finish="stop")],
    ),
    (
        "a chunk after [DONE]",
        sse(b"[DONE]", delta(content="late")),
        [Event(7, done=True), Event(7, content="late")],
    ),
    (
        "data over two lines",
        b'data: {"choices":\ndata: [{"text": "a"}]}\n\n',
        [Event(7, content="a")],
    ),
    ("nothing", b"", []),
]


@pytest.mark.parametrize(
    ("body", "expected"),
    [(body, expected) for _, body, expected in TABLE],
    ids=[name for name, _, _ in TABLE],
)
def test_bytes_to_events(body: bytes, expected: list[Event]) -> None:
    assert expected == events(body, [7], [len(body)])


@pytest.mark.parametrize("data", [b"{not json", b"[1, 2]", b"3"])
def test_an_event_that_is_no_object_is_an_error_event(data: bytes) -> None:
    [event] = events(sse(data), [7], [len(sse(data))])
    assert event.error is not None
    assert event.error.startswith("invalid event")


def test_invalid_utf8_is_replaced_not_raised() -> None:
    body = b'data: {"choices": [{"text": "\xff\xfea"}]}\n\n'
    [event] = events(body, [7], [len(body)])
    assert event.content == "\N{REPLACEMENT CHARACTER}" * 2 + "a"


def test_an_event_has_the_time_of_the_read_that_completed_it() -> None:
    first, second = sse(delta(content="a")), sse(delta(content="b"))
    cut = len(first) + 5
    body = first + second

    found = events(body, [10, 20], [cut, len(body) - cut])

    assert [(event.time_ns, event.content) for event in found] == [(10, "a"), (20, "b")]


def test_one_event_split_over_two_reads_inside_a_character() -> None:
    body = (
        sse({"choices": [{"text": "Grüße"}]})
        .replace(b"\\u00fc", "ü".encode())
        .replace(b"\\u00df", "ß".encode())
    )
    cut = body.index("ü".encode()) + 1

    [event] = events(body, [10, 20], [cut, len(body) - cut])

    assert event == Event(20, content="Grüße")


@given(st.data())
def test_any_split_of_the_bytes_gives_the_same_texts(data: st.DataObject) -> None:
    texts = data.draw(st.lists(st.text(max_size=8), max_size=5))
    body = (
        b": ping\n\n"
        + b"".join(sse(delta(content=text)) for text in texts)
        + sse(USAGE, b"[DONE]", end=b"\r\n")
    )
    cuts = sorted(data.draw(st.sets(st.integers(1, len(body) - 1), max_size=12)))
    sizes = [end - start for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]

    found = events(body, list(range(len(sizes))), sizes)

    assert [*texts, "", ""] == [event.content for event in found]
    assert [event.time_ns for event in found] == sorted(event.time_ns for event in found)
    ends = [sum(sizes[: event.time_ns + 1]) for event in found]
    assert all(end >= offset for end, (offset, _) in zip(ends, frames(body), strict=True)), (
        "an event cannot be earlier than its last byte"
    )
