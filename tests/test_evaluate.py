from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from evaluate import evaluate, flaws

GOOD = "Rain falls when water vapour in the air cools and condenses into drops that grow too heavy to stay up."


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (GOOD, []),
        ("Paris.", []),
        ("Ja, schön.\n\n1. Äpfel\n2. Birnen\t(reif)", []),
        ("The sky is blue. The sky is wide. The grass is green, and so is the tree that stands beside the house.", []),
        ("", ["empty"]),
        (" \n", ["empty"]),
        ("caf\N{REPLACEMENT CHARACTER}", ["undecodable"]),
        ("a\x00b", ["unprintable"]),
        ("rew " * 64, ["repetitive"]),
        (GOOD + " I am a robot." * 12, ["repetitive"]),
    ],
)
def test_flaws(text: str, found: list[str]) -> None:
    assert flaws(text) == found


def test_a_cell_with_many_broken_answers_is_marked() -> None:
    assert not evaluate([GOOD] * 19 + [""])["broken"]
    assert evaluate([GOOD] * 8 + ["rew " * 64] * 2)["broken"]
    assert evaluate([]) == {"answers": 0, "flaws": {}, "flawed_share": None, "broken": False, "examples": []}


@pytest.mark.parametrize("cell", [{"failure": None, "random": True}, {"failure": {"kind": "server_died"}}])
def test_cells_that_are_not_judged_have_an_evaluation_of_the_same_form(cell: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "cell.json").write_text(json.dumps(cell))
    command = [sys.executable, str(ROOT / "scripts/evaluate.py"), "--spec", "{}", "--cell", str(tmp_path / "cell.json"), "--output", str(tmp_path / "out.json")]
    subprocess.run(command, check=True)

    assert json.loads((tmp_path / "out.json").read_text()) == evaluate([])
