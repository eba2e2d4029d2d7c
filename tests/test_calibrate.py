"""The client against the server that does no work: what is found must be what happened."""

from __future__ import annotations

import json
import socket

import pytest

import calibrate
from conftest import calibration


def test_the_client_knows_its_error_and_its_ceiling() -> None:
    _, content = calibration()
    found = json.loads(content)
    [step] = found["steps"]

    assert step["streams"] == 2
    assert step["ttft_error_ms"]["n"] >= 2
    assert step["gap_error_ms"]["n"] > 20
    assert abs(step["ttft_error_ms"]["p50"]) < 2
    assert abs(step["gap_error_ms"]["p50"]) < 1
    # Two streams, 25 tokens each 0.6 s: far below what the client can do.
    assert found["ceiling"]["reads"]["per_s"] > 20 * step["reads_per_s"] > 0
    assert found["ceiling"]["requests"]["per_s"] > 100


def test_the_null_server_ends_with_whoever_started_it() -> None:
    with calibrate.null_server() as port:
        records, course = calibrate.loaded(port, 1, {"first_ms": 1, "gap_ms": 1, "tokens": 3}, 0.2)

    assert set(records.outcome) <= {"complete", "cancelled"}
    assert calibrate.rate(records, course) > 10
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port)).close()
