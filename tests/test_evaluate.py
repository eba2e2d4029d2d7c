from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from evaluate import Answer, evaluate, flaws

GOOD = "Rain falls when water vapour in the air cools and condenses into drops that grow too heavy to stay up."
LOST = "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (GOOD, []),
        ("Paris.", []),
        ("Ja, schön.\n\n1. Äpfel\n2. Birnen\t(reif) 🍐", []),
        ("The sky is blue. The sky is wide. The grass is green, and so is the tree that stands beside the house.", []),
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
def test_lengths_are_held_against_what_was_asked(answer: Answer, forced: bool, found: list[str]) -> None:
    assert flaws(answer, forced) == found


def test_a_cell_with_many_broken_answers_is_marked() -> None:
    good, looped = Answer(GOOD), Answer("rew " * 64)

    assert not evaluate([good] * 19 + [Answer("")])["broken"]
    assert not evaluate([good] * 17 + [looped] * 3)["broken"], "three of twenty can be chance: 5 to 36 %"
    assert evaluate([good] * 85 + [looped] * 18)["broken"]
    assert evaluate([good] * 8 + [looped] * 4)["broken"]
    assert evaluate([looped] * 3)["broken"]
    found = evaluate([good] * 9 + [looped])
    assert found["flaws"] == {"repetitive": 1}
    assert found["flawed_interval"] == pytest.approx([0.018, 0.404], abs=1e-3)
    assert evaluate([])["broken"] is False


@pytest.mark.parametrize("cell", [{"failure": None, "random": True}, {"failure": {"kind": "server_died"}}])
def test_cells_that_are_not_judged_have_an_evaluation_of_the_same_form(cell: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "cell.json").write_text(json.dumps(cell))
    command = [sys.executable, str(ROOT / "scripts/evaluate.py"), "--spec", "{}", "--cell", str(tmp_path / "cell.json"), "--output", str(tmp_path / "out.json")]
    subprocess.run(command, check=True)

    assert json.loads((tmp_path / "out.json").read_text()) == evaluate([])
