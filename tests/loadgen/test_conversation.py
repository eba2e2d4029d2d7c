from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from loadgen import conversation

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@given(st.text(), st.lists(st.text(), max_size=3))
def test_answers_are_put_into_later_bodies_whatever_they_say(
    prompt: str, answers: list[str]
) -> None:
    prompt = prompt.replace("\0", "")
    messages = [prompt, *(conversation.slot(turn) for turn in range(len(answers)))]

    body = conversation.fill(conversation.template({"messages": messages, "seed": 1}), answers)

    assert json.loads(body) == {"messages": [prompt, *answers], "seed": 1}


def streamed(*events: object) -> bytes:
    data = b"".join(
        b"data: " + (event if isinstance(event, bytes) else json.dumps(event).encode()) + b"\n\n"
        for event in events
    )
    return HEAD + b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data)


def test_an_answer_is_its_content_and_nothing_else() -> None:
    events = [
        {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
        {"choices": [{"delta": {"reasoning_content": "hm"}}]},
        {"choices": [{"delta": {"content": "Grüße"}}]},
        {"choices": [{"delta": {"content": None}}]},
        {"choices": [{"text": " aus Köln"}]},
        {"choices": [], "usage": {"completion_tokens": 2}},
        {"error": {"message": "boom"}},
        b"{broken",
        b"[DONE]",
    ]

    assert conversation.answer(streamed(*events)) == "Grüße aus Köln"
