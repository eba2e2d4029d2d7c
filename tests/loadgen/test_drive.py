"""The load generator against a server whose truth is known: what is reported must be what happened."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import uvloop
from tokenizers import Tokenizer

from loadgen import client, conversation, drive
from loadgen.reader import read
from loadgen.schedule import Shape
from loadgen.wire import body, frames
from loadgen.worker import Job
from metrics import cells, requests

Paced = Callable[..., AbstractContextManager[str]]
PROMPTS = [[conversation.template({"stream": True, "n": number})] for number in range(2)]


async def forever() -> None:
    await asyncio.sleep(3600)


class Runs:
    """Runs of the load generator, with their records in a folder of the test."""

    def __init__(self, folder: Path):
        self.records, self.lines = folder / "records.arrow", list[str]()

    def __call__(
        self, url: str, prompts: Any = PROMPTS, watch: Any = forever, **changes: Any
    ) -> tuple[pd.DataFrame, drive.Course]:
        shaped = {
            name: changes.pop(name)
            for name in (
                "users",
                "rate",
                "arrivals",
                "burstiness",
                "arrivals_s",
                "ramp_s",
                "window_s",
            )
            if name in changes
        }
        shape = Shape(**({"ramp_s": 0.3, "window_s": 2.0} | shaped))
        [port] = re.findall(r":(\d+)/", url)
        told = {
            "timeout_s": 5.0,
            "seed": 1,
            "rest_s": 0.0,
            "warmup_requests": shape.users or 0,
            "workers": 1,
        } | changes
        work = Job("127.0.0.1", int(port), "/v1/chat/completions", shape=shape, **told)
        course = uvloop.run(drive.run(work, prompts, self.records, self.lines.append, watch))
        return self.kept(), course

    def kept(self) -> pd.DataFrame:
        return read(self.records)


@pytest.fixture
def run(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def told(row: Any) -> list[tuple[int, dict[str, Any]]]:
    """The events of one record's row with the time of the read that completed each."""
    content, brought, _ = body(row.wire, row.read_bytes)
    ends = np.cumsum(brought)
    return [
        (int(row.read_ns[int(np.searchsorted(ends, end))]), json.loads(data))
        for end, data in frames(content)
        if data != b"[DONE]"
    ]


def truth_of(records: pd.DataFrame) -> pd.DataFrame:
    """What the server says it did, by its own stamps on the same clock: one row a complete request."""
    rows = []
    for row in records[records.outcome == "complete"].itertuples():
        events = [event for _, event in told(row)]
        wrote = [event["sent_ns"] for event in events if "sent_ns" in event]
        rows.append(
            {
                "sent_ns": row.sent_ns,
                "arrived": events[0]["arrived_ns"],
                "first": wrote[0],
                "last": wrote[-1],
                "gaps": np.diff(wrote),
            }
        )
    return pd.DataFrame(rows)


def load_of(records: pd.DataFrame) -> pd.DataFrame:
    return records[records.phase == "load"]


def in_window(records: pd.DataFrame, course: drive.Course) -> pd.DataFrame:
    load = load_of(records)
    return load[(load.sent_ns >= course.window_start_ns) & (load.sent_ns < course.window_end_ns)]


# How far the client may be off: its stamps are the kernel's own. The server's own stamp precedes its write by what the machine takes between.
ERROR_MS = 1.0


def test_reported_figures_are_the_truth(
    paced_server: Paced, tokenizer: Tokenizer, run: Runs
) -> None:
    with paced_server("--ttft-ms", "60", "--gap-ms", "10", "--tokens", "12") as url:
        records, course = run(url, users=8, window_s=3)
    found = cells.summary(requests.frame(records, tokenizer), vars(course), {}, [12, 12])
    truth = truth_of(in_window(records, course))
    inside = sum(
        course.window_start_ns <= event.get("sent_ns", 0) < course.window_end_ns
        for row in load_of(records).itertuples()
        for _, event in told(row)
    )

    assert found["failures"] == {}
    assert found["ttft"]["n"] == len(truth)
    assert found["ttft"]["p50"] == pytest.approx(
        ((truth["first"] - truth.sent_ns) / 1e6).median(), abs=ERROR_MS
    )
    assert found["ttft"]["p50"] == pytest.approx(
        60, abs=ERROR_MS + ((truth["first"] - truth.sent_ns) / 1e6 - 60).abs().median()
    )
    assert found["chunk_gap"]["p50"] == pytest.approx(
        np.median(np.concatenate(truth.gaps.tolist())) / 1e6, abs=ERROR_MS
    )
    assert found["itl"]["p50"] == pytest.approx(found["chunk_gap"]["p50"])
    assert found["tpot"]["p50"] == pytest.approx(
        ((truth["last"] - truth["first"]) / 11e6).median(), abs=ERROR_MS
    )
    assert found["e2e_latency"]["p50"] == pytest.approx(
        ((truth["last"] - truth.sent_ns) / 1e6).median(), abs=ERROR_MS
    )
    assert found["output_token_throughput"] == pytest.approx(inside / 3, rel=0.02)
    assert found["in_flight"] == pytest.approx(8, rel=0.1)
    assert found["full_length"] == 1


def test_each_read_is_stamped_when_the_server_wrote_it(paced_server: Paced, run: Runs) -> None:
    with paced_server("--tokens", "20") as url:
        records, course = run(url, users=4)
    late_ms = [
        (at - event["sent_ns"]) / 1e6
        for row in records[records.outcome == "complete"].itertuples()
        for at, event in told(row)
        if "sent_ns" in event
    ]

    assert len(late_ms) > 500
    assert course.unstamped == 0
    assert min(late_ms) >= -0.05, (
        "a byte cannot be read before it is written; two clocks are compared to some microseconds"
    )
    assert np.percentile(late_ms, 90) <= ERROR_MS


def test_requests_of_the_window_are_followed_to_their_end_under_load(
    paced_server: Paced, run: Runs
) -> None:
    with paced_server("--ttft-ms", "700", "--tokens", "2") as url:
        records, course = run(url, users=3, window_s=1)
    started = in_window(records, course)

    assert len(started)
    assert set(started.outcome) == {"complete"}
    assert started.done_ns.max() > course.window_end_ns
    assert "cancelled" in set(records.outcome), "the others kept up the load until then"


def test_the_window_begins_when_all_users_are_in(paced_server: Paced, run: Runs) -> None:
    with paced_server() as url:
        records, course = run(url, users=4, ramp_s=0.8, window_s=0.5)
    first = load_of(records).groupby("user").sent_ns.min()

    assert sorted(first.index) == [0, 1, 2, 3]
    for user, sent in first.items():
        assert course.clock_ns + 0.8e9 * user / 4 <= sent < course.window_start_ns
    warm = records[records.phase == "warmup"]
    assert len(warm) == 4
    assert (warm.sent_ns < course.clock_ns).all()


def test_a_rest_is_kept(paced_server: Paced, run: Runs) -> None:
    with paced_server("--ttft-ms", "1", "--tokens", "1") as url:
        records, _ = run(url, users=1, window_s=1, rest_s=0.2)
    load = load_of(records).dropna(subset=["sent_ns", "done_ns"]).sort_values("sequence")

    assert len(load) > 3
    assert all(
        after - before >= 0.2e9
        for before, after in zip(load.done_ns[:-1], load.sent_ns[1:], strict=True)
    )


def test_a_user_keeps_a_connection_and_opens_it_before_the_first_request(
    paced_server: Paced, run: Runs
) -> None:
    with paced_server("--ttft-ms", "1", "--tokens", "1") as url:
        records, course = run(url, users=3, warmup_requests=0, window_s=1)

    assert len(records) > 30
    assert course.sockets == 3
    assert course.retries == 0


def test_many_connections_are_read_together_and_stamped_apart(
    paced_server: Paced, run: Runs
) -> None:
    """From client.RESTED connections on reads wait for one another; the stamps stay those of the kernel."""
    with paced_server("--ttft-ms", "100", "--gap-ms", "50", "--tokens", "10") as url:
        records, course = run(url, users=client.RESTED + 36, ramp_s=0.5, window_s=1.5)
    started = in_window(records, course)
    late_ms = [
        (at - event["sent_ns"]) / 1e6
        for row in started.itertuples()
        for at, event in told(row)
        if "sent_ns" in event
    ]

    assert set(started.outcome) == {"complete"}
    assert len(late_ms) > 1000
    assert np.percentile(late_ms, 90) <= ERROR_MS


def test_several_processes_share_users_clock_and_records(paced_server: Paced, run: Runs) -> None:
    with paced_server() as url:
        records, course = run(url, users=5, workers=2, warmup_requests=3, window_s=1)

    assert set(load_of(records).user) == set(range(5))
    assert len(course.cpu_shares) == 2
    assert (records.phase == "warmup").sum() == 3
    assert (load_of(records).sent_ns >= course.clock_ns).all()
    assert len(in_window(records, course)) > 20
    assert [path.name for path in run.records.parent.iterdir()] == ["records.arrow"]


@pytest.mark.parametrize(
    ("users", "rate", "cores", "workers"),
    [
        (8, None, 2, 1),
        (512, None, 64, 1),
        (513, None, 64, 2),
        (5000, None, 16, 4),
        (5000, None, 2, 1),
        (None, 200, 16, 4),
    ],
)
def test_as_many_processes_as_the_load_needs_and_the_cores_allow(
    users: int | None, rate: float | None, cores: int, workers: int
) -> None:
    assert drive.workers_for(Shape(1, 1, users=users, rate=rate), cores) == workers


def test_an_open_loop_sends_on_time_however_slow_the_server_is(
    paced_server: Paced, run: Runs
) -> None:
    with paced_server("--ttft-ms", "600", "--tokens", "1") as url:
        records, course = run(url, rate=20, arrivals="constant", ramp_s=1, window_s=1)
    sent = in_window(records, course)

    assert len(sent) in (19, 20, 21)
    assert (
        (load_of(records).scheduled_ns - course.clock_ns) / 1e6
    ).sort_values().diff().dropna().to_numpy(float) == pytest.approx(50, abs=0.001)
    assert set(sent.outcome) == {"complete"}
    late_ms = ((sent.sent_ns - sent.scheduled_ns) / 1e6).to_numpy(float)
    assert min(late_ms) >= 0
    assert np.median(late_ms) < 10


def test_both_times_to_first_token_show_coordinated_omission(
    paced_server: Paced, tokenizer: Tokenizer, run: Runs
) -> None:
    """A closed loop sends when its user is free, so what waits is not seen; what an open loop cannot send in time is."""
    with paced_server("--ttft-ms", "1", "--tokens", "1") as url:
        records, course = run(url, rate=10, window_s=1)
    records["sent_ns"] += 30_000_000
    found = cells.summary(requests.frame(records, tokenizer), vars(course), {}, [1, 1])

    assert found["ttft_scheduled"]["p50"] - found["ttft"]["p50"] >= 30


def test_a_trace_is_replayed_in_order(paced_server: Paced, run: Runs) -> None:
    moments = (0.0, 0.1, 0.15, 0.9, 1.4, 1.45)
    prompts = [PROMPTS[0]] * len(moments)
    with paced_server("--ttft-ms", "1", "--tokens", "1") as url:
        records, course = run(url, prompts, arrivals_s=moments, ramp_s=0.2, window_s=1)
    load = load_of(records).sort_values("prompt")

    assert load.prompt.tolist() == [0, 1, 2, 3, 4, 5][: len(load)]
    assert ((load.scheduled_ns - course.clock_ns) / 1e9).tolist() == pytest.approx(
        list(moments[: len(load)])
    )
    assert len(load) >= 4


def test_a_conversation_holds_what_was_answered_before(paced_server: Paced, run: Runs) -> None:
    said = [('Say "hi"',), ("And then?",), ("Bye",)]
    bodies: list[Any] = []
    for turn in range(3):
        messages: list[dict[str, str]] = []
        for number in range(turn):
            messages += [
                {"role": "user", "content": said[number][0]},
                {"role": "assistant", "content": conversation.slot(number)},
            ]
        bodies.append(
            conversation.template(
                {"messages": [*messages, {"role": "user", "content": said[turn][0]}]}
            )
        )
    with paced_server("--ttft-ms", "1", "--gap-ms", "1", "--tokens", "2") as url:
        records, _ = run(url, [bodies], users=2, window_s=1)
    rows = [row for row in load_of(records).itertuples() if row.outcome == "complete"]

    assert {row.turn for row in rows} == {0, 1, 2}
    for row in rows:
        heard = [message["content"] for message in told(row)[0][1]["heard"]]
        assert heard == ['Say "hi"', " w0 w1", "And then?", " w0 w1", "Bye"][: 2 * row.turn + 1]
    for _, own in itertools.groupby(
        sorted(rows, key=lambda row: (row.user, row.sequence)), lambda row: row.user
    ):
        assert [row.turn for row in own][:4] == [0, 1, 2, 0]


FAULTS = [
    ("refuse", "http_error", "oops"),
    ("cut", "disconnected", "closed"),
    ("stall", "timeout", "0.5 s"),
]


@pytest.mark.parametrize(("fault", "outcome", "word"), FAULTS)
def test_a_failed_request_is_a_record_and_its_user_goes_on(
    paced_server: Paced, run: Runs, fault: str, outcome: str, word: str
) -> None:
    with paced_server("--fault", fault, "--ttft-ms", "5") as url:
        records, _ = run(url, users=1, window_s=1, timeout_s=0.5)
    load = load_of(records)[load_of(records).outcome != "cancelled"]

    assert set(load.outcome) == {outcome}
    assert all(word in error for error in load.error)
    assert 2 <= len(load) < 50, "no hot loop against a server that fails at once"


def test_nobody_listening_is_a_connect_error(free_port: Callable[[], int], run: Runs) -> None:
    records, _ = run(f"http://127.0.0.1:{free_port()}/", users=1, window_s=0.5)

    assert set(records.outcome) <= {"connect_error", "cancelled"}
    failed = records[records.outcome == "connect_error"]
    assert len(failed)
    assert failed.sent_ns.isna().all()
    assert failed.done_ns.notna().all()


def test_the_watch_ends_the_run_and_keeps_its_records(paced_server: Paced, run: Runs) -> None:
    async def watch() -> None:
        await asyncio.sleep(2.5)
        raise RuntimeError("the server died")

    with (
        paced_server("--ttft-ms", "100") as url,
        pytest.raises(RuntimeError, match="the server died"),
    ):
        run(url, users=2, ramp_s=0, window_s=60, watch=watch)

    outcomes = run.kept().outcome.value_counts()
    assert outcomes["complete"] >= 4
    assert outcomes["cancelled"] == 2


def test_a_worker_that_dies_ends_the_run(paced_server: Paced, run: Runs) -> None:
    """A timeout that is no number raises inside the worker: its end is told, not waited for."""
    with paced_server() as url, pytest.raises(drive.WorkerDied, match="ended with code 1"):
        run(url, users=1, timeout_s="soon")


def test_a_full_disk_in_a_worker_is_a_full_disk_here(paced_server: Paced, run: Runs) -> None:
    run.records.with_name("records.arrow.0").symlink_to("/dev/full")
    with paced_server() as url, pytest.raises(OSError, match="No space left"):
        run(url, users=1, window_s=5)


def test_progress_is_told_each_tick_for_all_processes_together(
    paced_server: Paced, run: Runs
) -> None:
    with paced_server() as url:
        run(url, users=3, workers=2, window_s=1.5, tick_s=0.5)

    assert len(run.lines) >= 3
    assert all(
        word in run.lines[2] for word in ("window", "in flight 3", "tokens/s", "TTFT", "errors 0")
    )


def test_no_proxy_is_taken_from_the_environment(
    paced_server: Paced, run: Runs, monkeypatch: pytest.MonkeyPatch, free_port: Callable[[], int]
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    with paced_server() as url:
        records, _ = run(url, users=1, window_s=0.3)

    assert "complete" in set(records.outcome)


def test_a_worker_told_to_stop_ends_well_however_soon_its_pipe_ends(tmp_path: Path) -> None:
    """The word to stop and the end of the pipe may be read at once."""
    job = {
        "host": "127.0.0.1",
        "port": 9,
        "path": "/",
        "timeout_s": 1,
        "seed": 1,
        "rest_s": 0,
        "warmup_requests": 0,
        "workers": 1,
    }
    (tmp_path / "job").write_text(
        json.dumps(job | {"shape": {"ramp_s": 0, "window_s": 9, "users": 1}})
        + "\n"
        + json.dumps(PROMPTS[0])
        + "\n"
    )
    told = [
        {"file": str(tmp_path / "job"), "number": 0, "records": str(tmp_path / "records")},
        {"clock_ns": 0},
        {"stop": True},
    ]
    said = "".join(json.dumps(line) + "\n" for line in told)

    done = subprocess.run(
        [sys.executable, "-m", "loadgen.worker"],
        input=said,
        capture_output=True,
        text=True,
        env=drive.surroundings(),
        timeout=30,
    )

    assert done.returncode == 0, done.stderr


def test_what_is_on_our_path_is_on_a_workers_path_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/some/site")
    assert drive.surroundings()["PYTHONPATH"] == f"{drive.SCRIPTS}{os.pathsep}/some/site"
    monkeypatch.delenv("PYTHONPATH")
    assert drive.surroundings()["PYTHONPATH"] == str(drive.SCRIPTS)
