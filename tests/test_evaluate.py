from __future__ import annotations

import pytest

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
