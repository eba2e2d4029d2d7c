from __future__ import annotations

import time
from array import array
from pathlib import Path

import pytest

from loadgen import record
from loadgen.reader import read


def written(path: Path, count: int) -> list[record.Record]:
    made = [
        record.Record(
            number,
            0,
            1,
            0,
            "load",
            100,
            sent_ns=101,
            outcome="complete",
            stamps=array("q", [1, 500, 1, 600]),
            offset_ns=1_000_000_000,
            read_bytes=array("i", [1, 2]),
            wire=bytearray(b"abc"),
        )
        for number in range(count)
    ]
    with record.writing(path) as writer:
        for one in made:
            writer.put(one)
    return made


def test_what_is_put_is_read_back(tmp_path: Path) -> None:
    [made] = written(tmp_path / "r.arrow", 1)

    found = read(tmp_path / "r.arrow")

    assert list(found.columns) == record.SCHEMA.names
    for name in ("user", "sent_ns", "outcome", "wire"):
        assert found[name][0] == getattr(made, name)
    assert found.read_ns[0].tolist() == [500, 600]
    assert found.read_bytes[0].tolist() == [1, 2]
    assert found.done_ns.isna().all()


def test_records_are_on_disk_while_the_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "r.arrow"
    with record.writing(path) as writer:
        writer.put(record.Record(0, 0, 0, 0, "load", 1))
        deadline = time.monotonic() + 10
        while not (path.exists() and len(read(path))) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(read(path)) == 1


@pytest.mark.parametrize("cut", [1, 7, 100])
def test_a_stream_cut_short_gives_what_came_before(
    tmp_path: Path, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "FLUSH_S", 0.05)
    path = tmp_path / "r.arrow"
    with record.writing(path) as writer:
        for number in range(2):
            writer.put(record.Record(number, 0, 0, 0, "load", 1))
            time.sleep(0.3)
    whole = path.read_bytes()
    end_of_stream = 8
    path.write_bytes(whole[: len(whole) - end_of_stream - cut])

    assert read(path).user.tolist() == [0]


def test_a_full_disk_is_told_to_whoever_closes(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"), record.writing(Path("/dev/full")) as writer:
        writer.put(record.Record(0, 0, 0, 0, "load", 1, wire=b"x" * 100_000))


def test_parts_are_merged_and_removed_and_one_that_was_never_begun_is_none(tmp_path: Path) -> None:
    written(tmp_path / "r.0", 2)
    written(tmp_path / "r.1", 3)

    record.merge([tmp_path / "r.0", tmp_path / "r.1", tmp_path / "r.2"], tmp_path / "r")

    assert sorted(read(tmp_path / "r").user) == [0, 0, 1, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_much_is_written_in_small_batches(tmp_path: Path) -> None:
    with record.writing(tmp_path / "r.arrow") as writer:
        for number in range(8):
            writer.put(
                record.Record(number, 0, 0, 0, "load", 1, wire=b"x" * (record.BATCH_BYTES // 2))
            )

    assert [len(batch) for batch in record.batches(tmp_path / "r.arrow")] == [2, 2, 2, 2]
    assert read(tmp_path / "r.arrow").user.tolist() == list(range(8))
