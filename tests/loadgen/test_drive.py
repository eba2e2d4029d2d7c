"""The load generator against a server whose truth is known: what is reported must be what happened."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pandas as pd
import pytest
import uvloop
from tokenizers import Tokenizer

from loadgen import drive, record, schedule
from metrics import cells, requests
from metrics.stream import frames

Paced = Callable[..., AbstractContextManager[str]]
BODIES = [b'{"stream": true}', b'{"stream": true, "n": 1}']


async def forever() -> None:
    await asyncio.sleep(3600)


def run(
    url: str, users: int, window_s: float = 2.0, ramp_s: float = 0.3, timeout_s: float = 5.0, rest_s: float = 0.0, watch: Any = forever
) -> tuple[list[record.Record], drive.Course, list[str]]:
    records: list[record.Record] = []
    lines: list[str] = []
    plan = schedule.closed_loop(users, ramp_s, len(BODIES), seed=1)
    course = uvloop.run(drive.closed_loop(drive.Target(url, BODIES, timeout_s), plan, users, ramp_s, window_s, rest_s, records.append, lines.append, watch))
    return records, course, lines


def frame(records: list[record.Record], tokenizer: Tokenizer) -> pd.DataFrame:
    made = pd.DataFrame([{name: getattr(one, name) for name in record.SCHEMA.names} for one in records])
    return requests.frame(made.astype(dict.fromkeys(("scheduled_ns", "sent_ns", "headers_ns", "done_ns", "status"), "Int64")), tokenizer)


def truth_of(records: list[record.Record]) -> pd.DataFrame:
    """What the server says it did, by its own stamps on the same clock: one row a complete request, times in ms."""
    rows = []
    for one in (one for one in records if one.outcome == "complete"):
        told = [json.loads(data) for _, data in frames(one.body) if data != b"[DONE]"]
        wrote = [event["sent_ns"] for event in told if "sent_ns" in event]
        rows.append({"sent_ns": one.sent_ns, "arrived": told[0]["arrived_ns"], "first": wrote[0], "last": wrote[-1], "gaps": np.diff(wrote)})
    return pd.DataFrame(rows)


def test_reported_figures_are_the_truth_within_the_stated_error(paced_server: Paced, tokenizer: Tokenizer) -> None:
    with paced_server("--ttft-ms", "60", "--gap-ms", "10", "--tokens", "12") as url:
        records, course, _ = run(url, users=8, window_s=3)
    found = cells.summary(frame(records, tokenizer), vars(course), {})
    error_ms = found["client"]["error_ms"]
    truth = truth_of([one for one in records if one.phase == "load" and course.window_start_ns <= (one.sent_ns or 0) < course.window_end_ns])
    inside = sum(course.window_start_ns <= event["sent_ns"] < course.window_end_ns for one in records if one.phase == "load" for event in told(one))

    assert found["failures"] == {}
    assert found["ttft"]["n"] == len(truth)
    assert found["ttft"]["p50"] == pytest.approx(((truth["first"] - truth.sent_ns) / 1e6).median(), abs=error_ms)
    assert found["ttft"]["p50"] == pytest.approx(60, abs=error_ms + ((truth["first"] - truth.arrived) / 1e6 - 60).abs().median() + ((truth.arrived - truth.sent_ns) / 1e6).median())
    assert found["chunk_gap"]["p50"] == pytest.approx(np.median(np.concatenate(truth.gaps.tolist())) / 1e6, abs=error_ms)
    assert found["itl"]["p50"] == pytest.approx(found["chunk_gap"]["p50"])
    assert found["tpot"]["p50"] == pytest.approx(((truth["last"] - truth["first"]) / 11e6).median(), abs=error_ms)
    assert found["e2e_latency"]["p50"] == pytest.approx(((truth["last"] - truth.sent_ns) / 1e6).median(), abs=error_ms)
    assert found["output_token_throughput"] == pytest.approx(inside / 3, rel=0.02)
    assert found["in_flight"] == pytest.approx(8, rel=0.1)


def told(one: record.Record) -> list[dict[str, int]]:
    """The events with a token of one record, as the server wrote them."""
    events = [json.loads(data) for _, data in frames(one.body) if data != b"[DONE]"]
    return [event for event in events if "sent_ns" in event]


def test_each_read_is_stamped_when_the_server_wrote_it(paced_server: Paced, tokenizer: Tokenizer) -> None:
    with paced_server("--tokens", "20") as url:
        records, course, _ = run(url, users=4)
    late_ms = []
    for one in (one for one in records if one.outcome == "complete"):
        arrivals = np.cumsum(one.read_bytes)
        for end, data in frames(one.body):
            wrote = json.loads(data).get("sent_ns") if data != b"[DONE]" else None
            if wrote:
                late_ms.append((one.read_ns[int(np.searchsorted(arrivals, end))] - wrote) / 1e6)
    error_ms = cells.summary(frame(records, tokenizer), vars(course), {})["client"]["error_ms"]

    assert len(late_ms) > 500
    assert min(late_ms) >= 0, "a byte cannot be read before it is written: one clock, two processes"
    assert np.percentile(late_ms, 90) <= error_ms


def test_requests_of_the_window_are_followed_to_their_end_under_load(paced_server: Paced) -> None:
    with paced_server("--ttft-ms", "700", "--tokens", "2") as url:
        records, course, _ = run(url, users=3, window_s=1)

    started = [one for one in records if one.phase == "load" and course.window_start_ns <= (one.sent_ns or 0) < course.window_end_ns]
    assert started
    assert {one.outcome for one in started} == {"complete"}
    assert max(one.done_ns or 0 for one in started) > course.window_end_ns
    assert [one for one in records if one.outcome == "cancelled"], "the others kept up the load until then"


def test_the_window_begins_when_all_users_are_in(paced_server: Paced) -> None:
    with paced_server() as url:
        records, course, _ = run(url, users=4, ramp_s=0.8, window_s=0.5)

    load = [one for one in records if one.phase == "load"]
    first = {user: min(one.sent_ns for one in load if one.user == user and one.sent_ns) for user in range(4)}
    for user, sent in first.items():
        assert sent >= course.clock_ns + 0.8e9 * user / 4
        assert sent < course.window_start_ns
    assert all((one.sent_ns or 0) < course.clock_ns for one in records if one.phase == "warmup")
    assert sum(one.phase == "warmup" for one in records) == 4


def test_a_rest_is_kept(paced_server: Paced) -> None:
    with paced_server("--ttft-ms", "1", "--tokens", "1") as url:
        records, _, _ = run(url, users=1, window_s=1, rest_s=0.2)

    load = sorted((one for one in records if one.phase == "load" and one.done_ns and one.sent_ns), key=lambda one: one.turn)
    assert all((b.sent_ns or 0) - (a.done_ns or 0) >= 0.2e9 for a, b in itertools.pairwise(load))


FAULTS = [("refuse", "http_error", "oops"), ("cut", "disconnected", "Error"), ("stall", "timeout", "0.5 s")]


@pytest.mark.parametrize(("fault", "outcome", "word"), FAULTS)
def test_a_failed_request_is_a_record_and_its_user_goes_on(paced_server: Paced, fault: str, outcome: str, word: str) -> None:
    with paced_server("--fault", fault, "--ttft-ms", "5") as url:
        records, _, _ = run(url, users=1, window_s=1, timeout_s=0.5)

    load = [one for one in records if one.phase == "load" and one.outcome != "cancelled"]
    assert {one.outcome for one in load} == {outcome}
    assert all(word in (one.error or "") for one in load)
    assert len(load) >= 2
    assert len(load) < 50, "no hot loop against a server that fails at once"


def test_nobody_listening_is_a_connect_error(free_port: Callable[[], int]) -> None:
    records, _, _ = run(f"http://127.0.0.1:{free_port()}/", users=1, window_s=0.5)

    assert {one.outcome for one in records} <= {"connect_error", "cancelled"}
    assert any(one.sent_ns is None and one.done_ns for one in records)


def test_the_watch_ends_the_run_and_keeps_its_records(paced_server: Paced) -> None:
    async def watch() -> None:
        await asyncio.sleep(1)
        raise RuntimeError("the server died")

    records: list[record.Record] = []
    with paced_server("--ttft-ms", "100") as url, pytest.raises(RuntimeError, match="the server died"):
        uvloop.run(drive.closed_loop(drive.Target(url, BODIES, 5), schedule.closed_loop(2, 0, 2, 1), 0, 0, 60, 0, records.append, print, watch))

    assert len([one for one in records if one.outcome == "complete"]) >= 4
    assert len([one for one in records if one.outcome == "cancelled"]) == 2


def test_progress_is_told_each_five_seconds(paced_server: Paced, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drive, "PROGRESS_S", 0.5)
    with paced_server() as url:
        _, _, lines = run(url, users=2, window_s=1.5)

    assert len(lines) >= 3
    assert all(word in lines[-1] for word in ("users 2", "tokens/s", "TTFT", "errors 0"))


def test_no_proxy_is_taken_from_the_environment(paced_server: Paced, monkeypatch: pytest.MonkeyPatch, free_port: Callable[[], int]) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    with paced_server() as url:
        records, _, _ = run(url, users=1, window_s=0.3)

    assert "complete" in {one.outcome for one in records}
