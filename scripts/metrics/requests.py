"""One row a request: its times and token counts, from its record."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from tokenizers import Tokenizer

from loadgen.stream import Event, answer

NONE = pd.NA


def frame(records: pd.DataFrame, tokenizer: Tokenizer) -> pd.DataFrame:
    """The request frame of a cell. Rows and columns of `records` as loadgen.record stores them, and:

    outcome          the record's, but a complete response is 'ok' only with an answer and an end: else 'error_event',
                     'truncated' (neither finish_reason nor [DONE] came) or 'empty' (no text came)
    ttft_ns          first event with text (reasoning counts) - sent
    ttft_scheduled_ns  the same event - scheduled;   ttft_answer_ns  first event with content, reasoning aside - sent
    ttft_headers_ns  response headers - sent;   ttft_frame_ns  first event of any kind - sent
    e2e_latency_ns   last event with text - sent
    tpot_ns          (last - first event with text) / (tokens - 1);  NA for fewer than two tokens
    tokens_usage, tokens_retokenized, tokens_events   the server's count, one tokenization of the whole text, events with text
    tokens           the count used: the server's where it gave one, else retokenized
    prompt_tokens    the server's count
    reads            how many reads brought the answer
    event_ns, event_tokens   arrays: the events with text, and the tokens that each completed (they add up to `tokens`)
    text, finish     the answer, and why it ended
    """
    read = [
        answer(wire, read_ns, read_bytes)
        for wire, read_ns, read_bytes in zip(
            records.wire, records.read_ns, records.read_bytes, strict=True
        )
    ]
    streams = [events for events, _ in read]
    texts = ["".join(event.text for event in stream) for stream in streams]
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    rows = []
    for record, (stream, head_ns), text, encoding in zip(
        records.itertuples(), read, texts, encodings, strict=True
    ):
        told = [event for event in stream if event.text]
        usage = next((event.usage for event in reversed(stream) if event.usage), {})
        retokenized = len(encoding.ids)
        tokens = usage.get("completion_tokens", retokenized)
        event_tokens = spread(
            tokens, [end for _, end in encoding.offsets], [len(event.text) for event in told]
        )
        first, last = (told[0].time_ns, told[-1].time_ns) if told else (NONE, NONE)
        content = next((event.time_ns for event in told if event.content), NONE)
        rows.append(
            {
                "outcome": outcome(record.outcome, stream, text),
                "error": next((event.error for event in stream if event.error), record.error),
                "ttft_ns": first - record.sent_ns,
                "ttft_scheduled_ns": first - record.scheduled_ns,
                "ttft_answer_ns": content - record.sent_ns,
                "ttft_headers_ns": head_ns - record.sent_ns if head_ns is not None else NONE,
                "ttft_frame_ns": stream[0].time_ns - record.sent_ns if stream else NONE,
                "e2e_latency_ns": last - record.sent_ns,
                "tpot_ns": (last - first) / (tokens - 1) if told and tokens > 1 else NONE,
                "tokens_usage": usage.get("completion_tokens", NONE),
                "tokens_retokenized": retokenized,
                "tokens_events": len(told),
                "tokens": tokens,
                "prompt_tokens": usage.get("prompt_tokens", NONE),
                "event_ns": np.array([event.time_ns for event in told], dtype=np.int64),
                "event_tokens": event_tokens,
                "text": text,
                "finish": next((event.finish for event in stream if event.finish), None),
            }
        )
    kept = records.drop(columns=["outcome", "error", "wire", "read_ns", "read_bytes"]).reset_index(
        drop=True
    )
    kept["reads"] = [len(reads) for reads in records.read_ns]
    made = pd.DataFrame(rows, columns=COLUMNS)
    numbers = [
        name
        for name in COLUMNS
        if (name.endswith("_ns") and name != "event_ns")
        or ("tokens" in name and name != "event_tokens")
    ]
    return kept.join(made.astype(dict.fromkeys(numbers, "Float64")))


COLUMNS = [
    *(
        "outcome",
        "error",
        "ttft_ns",
        "ttft_scheduled_ns",
        "ttft_answer_ns",
        "ttft_headers_ns",
        "ttft_frame_ns",
        "e2e_latency_ns",
        "tpot_ns",
    ),
    *(
        "tokens_usage",
        "tokens_retokenized",
        "tokens_events",
        "tokens",
        "prompt_tokens",
        "event_ns",
        "event_tokens",
        "text",
        "finish",
    ),
]


def outcome(recorded: str, stream: Sequence[Event], text: str) -> str:
    """What became of a request: HTTP may have ended well where the answer did not."""
    if recorded != "complete":
        return recorded
    if any(event.error for event in stream):
        return "error_event"
    if not any(event.done or event.finish for event in stream):
        return "truncated"
    return "ok" if text else "empty"


def spread(
    tokens: int, token_ends: Sequence[int], text_lengths: Sequence[int]
) -> npt.NDArray[np.float64]:
    """Tokens that each event completed: shape (events,), summing to `tokens`.

    A token belongs to the event that brings its last character; `token_ends` are the character offsets of one
    tokenization of the joined text, `text_lengths` the characters of each event. Where the server counts otherwise than
    that tokenization (a stop token, say), every share is scaled to its count.
    """
    if not text_lengths:
        return np.zeros(0)
    if not len(token_ends):
        return np.full(len(text_lengths), tokens / len(text_lengths))
    owners = np.searchsorted(np.cumsum(text_lengths), token_ends).clip(max=len(text_lengths) - 1)
    counts = np.bincount(owners, minlength=len(text_lengths)).astype(float)
    return np.asarray(counts * (tokens / counts.sum()))
