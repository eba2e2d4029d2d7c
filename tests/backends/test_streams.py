"""The streams of the study's backends, as they write them (wire/<backend>.sse says where each is from), read as one and the same answer."""

from __future__ import annotations

from pathlib import Path

import pytest

import backends
from loadgen.stream import event
from loadgen.wire import frames

WIRE = sorted((Path(__file__).parent / "wire").glob("*.sse"))
TOKENS = {"tgi": 7}


@pytest.mark.parametrize("file", WIRE, ids=lambda file: file.stem)
def test_a_stream_is_read_whole(file: Path) -> None:
    events = [event(number, data) for number, (_, data) in enumerate(frames(file.read_bytes()))]
    texts = [one.text for one in events if one.text]

    assert file.stem in backends.names()
    assert file.read_text().startswith(": "), "it says where it is from"
    assert "".join(texts) == "Rain falls on 東京."
    assert 1 < len(texts) < 7, "a stream, and events are not tokens"
    assert [one.finish for one in events if one.finish] == ["stop"]
    assert [one.usage["completion_tokens"] for one in events if one.usage] == [
        TOKENS.get(file.stem, 6)
    ]
    assert not [one.error for one in events if one.error]
    assert events[-1].done


def test_each_backend_of_the_study_has_one() -> None:
    assert {"vllm", "lmdeploy", "mlc_llm", "tensorrt_llm", "tgi", "sglang"} == {
        file.stem for file in WIRE
    }
