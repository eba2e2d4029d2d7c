from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline import store


def make(folder: Path) -> dict[str, Any]:
    (folder / "sub").mkdir()
    (folder / "sub" / "bytes").write_bytes(b"12345")
    return {"fact": "sub/bytes"}


def test_an_artefact_is_made_once(tmp_path: Path) -> None:
    made = store.obtain(tmp_path, "stage", {"a": 1}, "code", make)
    found = store.obtain(
        tmp_path, "stage", {"a": 1}, "code", lambda folder: pytest.fail("made twice")
    )

    assert found == made
    assert made.file("fact").read_bytes() == b"12345"
    assert [(entry["path"], entry["bytes"]) for entry in made.files] == [("sub/bytes", 5)]
    assert made.bytes == 5


@pytest.mark.parametrize(("spec", "code"), [({"a": 2}, "code"), ({"a": 1}, "other")])
def test_another_specification_or_code_is_another_artefact(
    tmp_path: Path, spec: dict[str, int], code: str
) -> None:
    assert (
        store.obtain(tmp_path, "stage", spec, code, make).path
        != store.obtain(tmp_path, "stage", {"a": 1}, "code", make).path
    )


def test_a_failed_make_leaves_nothing(tmp_path: Path) -> None:
    def broken(folder: Path) -> dict[str, Any]:
        make(folder)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.obtain(tmp_path, "stage", {}, "", broken)

    assert list((tmp_path / "stage").rglob("bytes")) == []
    assert store.obtain(tmp_path, "stage", {}, "", make).bytes == 5


def test_a_half_made_entry_is_not_taken_for_whole(tmp_path: Path) -> None:
    entry = tmp_path / "stage" / store.key({}, "")
    (entry / "data").mkdir(parents=True)
    (entry / "data" / "half").write_bytes(b"1")

    assert [one["path"] for one in store.obtain(tmp_path, "stage", {}, "", make).files] == [
        "sub/bytes"
    ]


def truncate(path: Path) -> None:
    path.write_bytes(b"123")


def change_content(path: Path) -> None:
    path.write_bytes(b"54321")
    os.utime(path, (1, 1))


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (Path.unlink, "is gone"),
        (truncate, "has 3 bytes instead of 5"),
        (change_content, "has changed"),
    ],
)
def test_lost_bytes_are_noticed_and_made_again(
    tmp_path: Path, harm: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = store.obtain(tmp_path, "stage", {}, "", make)
    harm(made.file("fact"))

    assert reason in (store.lost(made) or "")
    again = store.obtain(tmp_path, "stage", {}, "", make)
    assert again.file("fact").read_bytes() == b"12345"
    assert reason in caplog.text


def test_touching_loses_nothing(tmp_path: Path) -> None:
    made = store.obtain(tmp_path, "stage", {}, "", make)
    os.utime(made.file("fact"), (1, 1))

    assert store.lost(made) is None


def test_bytes_that_lie_elsewhere_stay_there(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "bytes").write_bytes(b"1")

    made = store.obtain(
        tmp_path / "store", "stage", {}, "", lambda folder: {"path": str(elsewhere)}
    )

    assert made.path == str(elsewhere)
    assert sorted(path.name for path in elsewhere.iterdir()) == ["bytes"], (
        "no file of ours in somebody else's cache"
    )
    assert store.lost(made) is None


def test_two_makers_of_one_artefact_wait_for_each_other(tmp_path: Path) -> None:
    calls = []

    def slow(folder: Path) -> dict[str, Any]:
        calls.append(folder)
        time.sleep(0.3)
        return make(folder)

    threads = [
        threading.Thread(target=store.obtain, args=(tmp_path, "stage", {}, "", slow))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(calls) == 1
