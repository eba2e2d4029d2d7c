"""Calibrate the client: run it against a server that does no work, to know the error of its times and its ceiling."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import uvloop

from host.machine import describe_host
from loadgen import conversation, drive, wire
from loadgen.reader import read
from loadgen.schedule import Shape
from loadgen.worker import Job
from metrics.intervals import percentile
from pipeline import alone, results, stage

log = logging.getLogger(__name__)
# The pace at which errors are measured: that of a fast server, 50 tokens/s to each user.
PACE: dict[str, float] = {"first_ms": 100, "gap_ms": 20, "tokens": 25}
# What saturates the client: as many reads, or as many requests, as it can take.
FLOODS: dict[str, dict[str, float]] = {
    "reads": {"first_ms": 0, "gap_ms": 0, "tokens": 1000},
    "requests": {"first_ms": 0, "gap_ms": 0, "tokens": 1},
}
FLOOD_STREAMS = 256
RAMP_S = 0.5


@contextmanager
def null_server() -> Iterator[int]:
    """A server for the block; gives its port. It ends with its standard input, so with this process too."""
    process = subprocess.Popen(
        [sys.executable, "-m", "loadgen.null_server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=drive.surroundings(),
    )
    assert process.stdin and process.stdout
    try:
        yield int(process.stdout.readline())
    finally:
        process.stdin.close()
        process.wait(timeout=20)
        process.stdout.close()


def loaded(
    port: int, streams: int, body: dict[str, float], seconds: float
) -> tuple[pd.DataFrame, drive.Course]:
    """Records and course of one process with `streams` users against the server."""

    async def forever() -> None:
        await asyncio.Event().wait()

    shape = Shape(ramp_s=RAMP_S, window_s=seconds, users=streams)
    work = Job(
        "127.0.0.1",
        port,
        "/",
        timeout_s=60,
        shape=shape,
        seed=0,
        rest_s=0,
        warmup_requests=min(streams, 8),
        workers=1,
    )
    with tempfile.TemporaryDirectory() as folder:
        records = Path(folder, "records.arrow")
        course = uvloop.run(
            drive.run(work, [[conversation.template(dict(body))]], records, lambda _: None, forever)
        )
        return read(records), course


def errors(records: pd.DataFrame) -> dict[str, Any]:
    """How far the client's TTFT and gaps were from the server's own, ms, over complete answers.

    ttft: the client's - (first event written - request received by the server's kernel); gap: the difference without its sign.
    """
    ttft, gap = [], []
    for row in records[records.outcome == "complete"].itertuples():
        body, brought, _ = wire.body(row.wire, row.read_bytes)
        told = [(end, json.loads(data)) for end, data in wire.frames(body) if b"sent_ns" in data]
        seen = np.asarray(row.read_ns)[
            np.searchsorted(np.cumsum(brought), [end for end, _ in told])
        ]
        wrote = np.array([event["sent_ns"] for _, event in told])
        ttft.append(((seen[0] - row.sent_ns) - (wrote[0] - told[0][1]["arrived_ns"])) / 1e6)
        gap += (np.abs(np.diff(seen) - np.diff(wrote)) / 1e6).tolist()
    return {"ttft_error_ms": spread(ttft), "gap_error_ms": spread(gap)}


def spread(values: list[float]) -> dict[str, Any]:
    return {
        "n": len(values),
        "p50": percentile(values, 50),
        "p99": percentile(values, 99),
        "max": max(values, default=None),
    }


def rate(records: pd.DataFrame, course: drive.Course) -> float:
    """Reads a second in the window."""
    moments = np.concatenate([np.asarray(reads) for reads in records.read_ns if len(reads)])
    inside = (moments >= course.window_start_ns) & (moments < course.window_end_ns)
    return float(inside.sum()) * 1e9 / (course.window_end_ns - course.window_start_ns)


def calibrate(streams: list[int], seconds: float) -> dict[str, Any]:
    """The error at each number of streams, and the ceilings: reads and requests a second of one process that does nothing else.

    Where a ceiling's cpu_share is well below 1 the server was the limit, and the client could do more than it says.
    """
    found: dict[str, Any] = {"steps": [], "ceiling": {}}
    with null_server() as port:
        for number in streams:
            records, course = loaded(port, number, PACE, seconds)
            step = {
                "streams": number,
                "reads_per_s": rate(records, course),
                "cpu_share": course.cpu_shares[0],
                "lag_ms": course.lag_ms,
                **errors(records),
            }
            found["steps"].append(step)
            log.info(
                "%d streams: TTFT off by %s ms, gaps by %s ms (p50, p99)",
                number,
                *(shown(step[name]) for name in ("ttft_error_ms", "gap_error_ms")),
            )
        for name, body in FLOODS.items():
            records, course = loaded(port, FLOOD_STREAMS, body, seconds)
            sent = records.sent_ns[
                (records.sent_ns >= course.window_start_ns)
                & (records.sent_ns < course.window_end_ns)
            ]
            reached = (
                rate(records, course)
                if name == "reads"
                else len(sent) * 1e9 / (course.window_end_ns - course.window_start_ns)
            )
            found["ceiling"][name] = {"per_s": reached, "cpu_share": course.cpu_shares[0]}
            log.info(
                "ceiling: %.0f %s a second, at %.2f cores", reached, name, course.cpu_shares[0]
            )
    return found


def shown(values: dict[str, Any]) -> str:
    return " / ".join(
        "-" if values[name] is None else f"{values[name]:.2f}" for name in ("p50", "p99")
    )


def main() -> None:
    job = stage.task(__doc__)
    started = time.monotonic()
    with alone.on_machine("calibrates the client"):
        found = calibrate(job.spec["calibration"]["streams"], job.spec["calibration"]["step_s"])
    head = {"key": job.key, "spec": job.spec, "host": describe_host()}
    results.write(job.output, head | found | {"seconds": round(time.monotonic() - started, 1)})


if __name__ == "__main__":
    main()
