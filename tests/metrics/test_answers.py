"""Answers made by hand and what is wrong with them; which cells are judged."""

from __future__ import annotations

import json
import subprocess
import sys
from array import array
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

import stages
from conftest import ROOT
from loadgen import record
from metrics.answers import Answer, evaluate, flaws
from pipeline.artifact import Manifest, write_json
from pipeline.results import part

GOOD = "Rain falls when water vapour in the air cools and condenses into drops that grow too heavy to stay up."
LOST = "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (GOOD, []),
        ("Paris.", []),
        ("Ja, schön.\n\n1. Äpfel\n2. Birnen\t(reif) 🍐", []),
        (
            "The sky is blue. The sky is wide. The grass is green, and so is the tree that stands beside the house.",
            [],
        ),
        ("", ["empty"]),
        (" \n", ["empty"]),
        (f"a caf{LOST} in the middle", ["undecodable"]),
        (f"an emoji: {LOST}", ["cut"]),
        (f"an emoji: {LOST}{LOST}{LOST}", ["cut"]),
        ("a word with \x00 in it", ["unprintable"]),
        ("a\x00b", ["unprintable", "gibberish"]),
        (f"{LOST}a{LOST}b{LOST}c.", ["undecodable", "gibberish"]),
        ("rew " * 64, ["repetitive"]),
        (GOOD + " I am a robot." * 12, ["repetitive"]),
    ],
)
def test_flaws_of_a_text(text: str, found: list[str]) -> None:
    assert flaws(Answer(text)) == found


@pytest.mark.parametrize(
    ("answer", "forced", "found"),
    [
        (Answer(GOOD, "stop", 20, 32), False, []),
        (Answer(GOOD, "length", 32, 32), False, []),
        (Answer(GOOD, "length", 32, 32), True, []),
        (Answer(GOOD, "stop", 20, 32), True, ["too short"]),
        (Answer(GOOD, "length", 20, 32), False, ["too short"]),
        (Answer(GOOD, "stop", 33, 32), False, ["too long"]),
        (Answer(GOOD, "stop", None, 32), True, []),
        (Answer(f"an emoji: {LOST}", "length", 32, 32), False, []),
        (Answer(f"an emoji: {LOST}", "stop", 9, 32), False, ["cut"]),
    ],
)
def test_lengths_are_held_against_what_was_asked(
    answer: Answer, forced: bool, found: list[str]
) -> None:
    assert flaws(answer, forced) == found


def test_a_cell_with_many_broken_answers_is_marked() -> None:
    good, looped = Answer(GOOD), Answer("rew " * 64)

    assert not evaluate([good] * 19 + [Answer("")])["broken"]
    assert not evaluate([good] * 17 + [looped] * 3)["broken"], (
        "three of twenty can be chance: 5 to 36 %"
    )
    assert evaluate([good] * 85 + [looped] * 18)["broken"]
    assert evaluate([good] * 8 + [looped] * 4)["broken"]
    assert evaluate([looped] * 3)["broken"]
    found = evaluate([good] * 9 + [looped])
    assert found["flaws"] == {"repetitive": 1}
    assert found["flawed_interval"] == pytest.approx([0.018, 0.404], abs=1e-3)
    assert evaluate([])["broken"] is False


COURSE = {
    "clock_ns": 0,
    "window_start_ns": 0,
    "window_end_ns": 10 * 10**9,
    "cpu_shares": [0.1],
    "lag_ms": {"p99": 0.1},
}
COURSE |= {"sockets": 1, "retries": 0, "unstamped": 0, "clock_steps": 0}
HOST = {"cpu": "abacus", "cores": 2}
ERROR = {"p99": 0.1, "max": 0.1}
STEP = {"streams": 1, "ttft_error_ms": ERROR, "gap_error_ms": ERROR}
CEILING = {"reads": {"per_s": 100.0}, "requests": {"per_s": 50.0}}
OFFERED = {"offered": {"kind": "users", "value": 1}, "workload": {"output_length": "forced"}}
MEASURED = {
    "failure": None,
    "spec": {"cell": OFFERED},
    "host": HOST,
    "course": COURSE,
    "telemetry": [],
    "asked_tokens": [8],
}
ANSWERED_NOTHING = (
    b'HTTP/1.1 200 OK\r\n\r\ndata: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\n'
)


def summarized(folder: Path, cell: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """The evaluation of a session's only cell, by summarize.py: its one answer is empty."""
    place = folder / "session/chat/c1"
    place.mkdir(parents=True)
    with record.writing(place / "records.arrow") as writer:
        stamps, sizes = array("q", [0, 120]), array("i", [len(ANSWERED_NOTHING)])
        times = {"scheduled_ns": 90, "sent_ns": 100, "done_ns": 150, "outcome": "complete"}
        told = {"stamps": stamps, "read_bytes": sizes, "wire": ANSWERED_NOTHING}
        writer.put(record.Record(0, 0, 0, 0, "load", **times, **told))
    write_json(place / "cell.json", cell | {"records": part(place / "records.arrow")})
    write_json(folder / "session/s.json", {})
    write_json(folder / "calibration.json", {"host": HOST, "steps": [STEP], "ceiling": CEILING})
    tokenizer.save(str(folder / "tokenizer.json"))
    facts = {"tokenizer": "."}
    Manifest("download", "m", {}, "", str(folder), [], facts).save(folder / "model.json")
    spec = {"slo": {}, "cells": {"chat/c1": {"cell": "c", "summary": "s"}}}
    inputs = {"session": folder / "session/s.json"}
    inputs |= {name: folder / f"{name}.json" for name in ("calibration", "model")}
    options = stages.arguments(folder, "out", spec, **inputs)
    subprocess.run([sys.executable, str(ROOT / "scripts/summarize.py"), *options], check=True)
    found: dict[str, Any] = json.loads((folder / "chat/c1/summary.json").read_text())
    return found["evaluation"]


@pytest.mark.parametrize(
    "cell", [MEASURED | {"random": True}, {"failure": {"kind": "server_died"}}]
)
def test_cells_that_are_not_judged_have_an_evaluation_of_the_same_form(
    cell: dict[str, Any],
    tmp_path: Path,
    tokenizer: Tokenizer,
) -> None:
    assert summarized(tmp_path, cell, tokenizer) == evaluate([])


def test_a_cell_that_is_judged_has_the_flaws_of_its_answers(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    found = summarized(tmp_path, MEASURED | {"random": False}, tokenizer)

    assert (found["answers"], found["flaws"]) == (1, {"empty": 1})
