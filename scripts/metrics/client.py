"""What the client itself added to a cell, and whether it may have been the limit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from metrics import windows
from metrics.intervals import percentile

# Beyond these the client, not the server, may have made the numbers.
CPU_SHARE = 0.8
CEILING_SHARE = 0.7
LAG_P99_MS = 50.0
LATE_P99_MS = 10.0


def health(
    requests: pd.DataFrame,
    course: dict[str, Any],
    calibration: dict[str, Any],
    host: dict[str, Any],
    open_loop: bool,
) -> dict[str, Any]:
    """The client's own figures over the window of a cell, from its request frame, its course and the calibration of that host.

    reads_per_s, requests_per_s   of all processes;   ceiling_share   reads and requests of one process, each over what one
                     can do (calibrate.py), added up: the share of its time that such work takes
    offered_per_s    requests scheduled in the window / its length;   sent_per_s, done_per_s   those sent and those ended in it
    send_late_ms     sent - scheduled, of the requests sent in the window
    merged_reads     events that came in one read with an earlier one of their answer / all events: their gap reads as 0
    ttft_error_ms, gap_error_ms   the stated error of a single time: the 99th percentile (of few, the largest) found by the
                     calibration at as many streams; None where it was made on another host or the kernel stamped no reads
    """
    start, end = course["window_start_ns"], course["window_end_ns"]
    length_s, load = (end - start) / 1e9, requests[requests.phase == "load"]
    workers = len(course["cpu_shares"])
    sent = load[(load.sent_ns >= start) & (load.sent_ns < end)]
    late = ((sent.sent_ns - sent.scheduled_ns) / 1e6).to_numpy(float)
    event_ns, _ = windows.arrivals(sent)
    merged = sum(int((np.diff(times) == 0).sum()) for times in sent.event_ns)
    reads_per_s = float(sent.reads.sum()) / length_s
    offered = int(((load.scheduled_ns >= start) & (load.scheduled_ns < end)).sum())
    ceiling = calibration["ceiling"]
    ceiling_share = (
        reads_per_s / ceiling["reads"]["per_s"]
        + len(sent) / length_s / ceiling["requests"]["per_s"]
    ) / workers
    streams = windows.in_flight(load, start, end) / workers
    step = next(
        (step for step in calibration["steps"] if step["streams"] >= streams),
        calibration["steps"][-1],
    )
    calibrated = (
        all(calibration["host"][name] == host[name] for name in ("cpu", "cores"))
        and not course["unstamped"]
    )
    found = {
        "workers": workers,
        "cpu_share": max(course["cpu_shares"]),
        "lag_ms": course["lag_ms"],
        "reads_per_s": reads_per_s,
        "requests_per_s": len(sent) / length_s,
        "ceiling_share": ceiling_share,
        "offered_per_s": offered / length_s,
        "sent_per_s": len(sent) / length_s,
        "done_per_s": float(
            ((load.done_ns >= start) & (load.done_ns < end) & (load.outcome != "cancelled")).sum()
        )
        / length_s,
        "send_late_ms": {
            "p50": percentile(late, 50),
            "p99": percentile(late, 99),
            "max": float(late.max()) if len(late) else None,
        },
        "merged_reads": merged / len(event_ns) if len(event_ns) else None,
        **{name: course[name] for name in ("sockets", "retries", "unstamped", "clock_steps")},
        "calibrated_streams": step["streams"],
        **{
            name: largest(step[name]) if calibrated else None
            for name in ("ttft_error_ms", "gap_error_ms")
        },
    }
    said = reasons(found, open_loop)
    return found | {"valid": not said, "reason": " and ".join(said)}


def largest(error: dict[str, Any]) -> float | None:
    """The error that is stated: p99, or of fewer than it needs the largest that was seen."""
    value = error["max"] if error["p99"] is None else error["p99"]
    return None if value is None else float(value)


def reasons(found: dict[str, Any], open_loop: bool) -> list[str]:
    """Why the client may have been the limit, if it may."""
    said = []
    if found["cpu_share"] > CPU_SHARE:
        said.append(f"the client used {found['cpu_share']:.2f} of one core")
    if found["ceiling_share"] > CEILING_SHARE:
        said.append(f"it was at {100 * found['ceiling_share']:.0f} % of its ceiling")
    if found["lag_ms"]["p99"] > LAG_P99_MS:
        said.append(f"its event loop was {found['lag_ms']['p99']:.0f} ms late at p99")
    late = found["send_late_ms"]["p99"] or found["send_late_ms"]["max"] or 0.0
    if open_loop and late > LATE_P99_MS:
        said.append(f"its requests were {late:.0f} ms late")
    if found["clock_steps"]:
        said.append("the wall clock was set meanwhile")
    return said
