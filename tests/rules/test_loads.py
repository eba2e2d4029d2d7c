"""Every kind of load through the pipeline: an open loop, a trace, conversations, answers of a forced length."""

from __future__ import annotations

import csv
import json

import pytest

from conftest import EXPERIMENT, Checkout

LOAD = {
    **EXPERIMENT["load"],
    "ramp_s": 0.5,
    "window_s": 1.5,
    "arrivals": "gamma",
    "burstiness": 2.0,
}


@pytest.mark.slow
def test_each_kind_of_load_is_measured_and_told(checkout: Checkout) -> None:
    rows = [
        f"2023-11-16 18:15:{46 + number * 0.25:09.6f},{20 + number},{3 + number % 4}"
        for number in range(20)
    ]
    (checkout.folder / "trace.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows) + "\n"
    )
    checkout.configure(
        workloads=[
            {
                "name": "chat",
                "prompts": {
                    "source": "file",
                    "path": "prompts/conversations.jsonl",
                    "turns": "turns",
                },
                "max_tokens": 16,
            },
            {
                "name": "azure",
                "prompts": {"source": "trace", "path": "trace.csv", "layout": "azure"},
                "max_tokens": 5,
                "output_length": "forced",
            },
        ],
        concurrencies=[2],
        rates=[12],
        speeds=[2],
        load=LOAD,
    )

    checkout.snakemake()
    with (checkout.folder / "results/summary.csv").open() as source:
        found = {
            (row["workload"], row["kind"], row["value"]): row for row in csv.DictReader(source)
        }
    page, cells = (checkout.folder / "results/report.html").read_text(), checkout.cells()

    assert set(found) == {
        ("chat", "users", "2"),
        ("chat", "rate", "12"),
        ("azure", "users", "2"),
        ("azure", "rate", "12"),
        ("azure", "speed", "2"),
    }
    assert {row["outcome"] for row in found.values()} == {"measured"}
    assert cells["tiny/none/paced/t1/azure/x2"]["asked_tokens"] == [
        min(5, 3 + number % 4) for number in range(20)
    ]
    # the paced server says eight tokens whatever was asked: more than asked counts as full
    assert found["azure", "speed", "2"]["full_length"] == "1.0"
    summary = json.loads(
        (checkout.folder / "results/summarize/tiny/none/paced/t1/azure/x2/summary.json").read_text()
    )
    assert summary["metrics"]["client"]["offered_per_s"] == pytest.approx(8, abs=1)
    for words in (
        "Closed loop",
        "arrive at a rate",
        "in a recorded trace",
        "exactly 5 tokens",
        "at most 16 tokens",
        "conversations of up to 4 turns",
        "12 requests/s",
        "2 × the trace",
    ):
        assert words in page


@pytest.mark.slow
def test_a_trace_that_is_over_before_the_window_is_a_failed_cell_with_its_remedy(
    checkout: Checkout,
) -> None:
    (checkout.folder / "trace.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,20,3\n2023-11-16 18:15:47,20,3\n"
    )
    trace = {
        "name": "azure",
        "prompts": {"source": "trace", "path": "trace.csv", "layout": "azure"},
        "max_tokens": 5,
    }
    checkout.configure(
        workloads=[trace],
        concurrencies=[],
        speeds=[1],
        load={**LOAD, "arrivals": "poisson", "burstiness": 1},
    )

    checkout.snakemake()

    [cell] = checkout.cells().values()
    assert cell["failure"]["kind"] == "no_prompts"
    assert (
        "2 requests that fit and is over after 1 s at 1 times its speed; ramp and window last 2 s"
        in cell["failure"]["reason"]
    )
