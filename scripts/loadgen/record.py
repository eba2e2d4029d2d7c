"""One record a request, failed ones too: raw facts only. Stored as an Arrow stream, batch by batch.

A stream that was cut short can be read up to its last whole batch.
"""

from __future__ import annotations

import logging
import queue
import threading
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

log = logging.getLogger(__name__)
FLUSH_S, STEPS = 1.0, 10
BUSY = 16
BATCH_BYTES = 1 << 20
OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")

SCHEMA = pa.schema(
    [
        ("user", pa.int32()),
        ("sequence", pa.int32()),
        ("prompt", pa.int32()),
        ("turn", pa.int32()),
        ("phase", pa.string()),
        ("scheduled_ns", pa.int64()),
        ("sent_ns", pa.int64()),
        ("done_ns", pa.int64()),
        ("status", pa.int32()),
        ("retries", pa.int32()),
        ("outcome", pa.string()),
        ("error", pa.string()),
        ("read_ns", pa.list_(pa.int64())),
        ("read_bytes", pa.list_(pa.int32())),
        ("wire", pa.binary()),
    ]
)


@dataclass(slots=True)
class Record:
    """What happened to one request. Times are perf_counter_ns (CLOCK_MONOTONIC); None for what never came.

    sequence      number of the request among its user's;  phase  'first', 'warmup' or 'load'
    prompt        index of the conversation;  turn  which of its turns, from 0
    scheduled_ns  when it was to be sent: when its user was free, or its arrival in an open loop
    sent_ns       just before its first byte was handed to the socket;  done_ns  when this process knew that it was over
    status        of the response's head;  retries  1 if a kept connection proved closed and it was sent again on another
    stamps        when the kernel received the bytes of each read, the last of them where several had come: seconds and
                  nanoseconds of CLOCK_REALTIME in turn, which is perf_counter_ns + offset_ns; stored as read_ns
    read_bytes    how many bytes each read gave;  wire  all of them, head and framing included
    outcome       'complete' (the response ended as HTTP says it must), 'overloaded' (429 or 503), 'http_error' (any
                  other status but 200), 'connect_error', 'disconnected' (cut off), 'timeout', 'cancelled' (by the end of the run)
    """

    user: int
    sequence: int
    prompt: int
    turn: int
    phase: str
    scheduled_ns: int
    sent_ns: int | None = None
    done_ns: int | None = None
    status: int | None = None
    retries: int = 0
    outcome: str = "cancelled"
    error: str | None = None
    stamps: array[int] = field(default_factory=lambda: array("q"))
    offset_ns: int = 0
    read_bytes: array[int] = field(default_factory=lambda: array("i"))
    wire: bytes | bytearray = b""

    @property
    def read_ns(self) -> npt.NDArray[np.int64]:
        """The stamps as perf_counter_ns, one a read."""
        pairs = np.frombuffer(self.stamps, dtype=np.int64).reshape(-1, 2)
        return pairs[:, 0] * 1_000_000_000 + pairs[:, 1] - self.offset_ns


class Writer:
    """Takes records from the event loop without waiting; a thread writes them, in small batches.

    A large one would hold the interpreter for tens of milliseconds, most of them to get fresh memory. `failed` is the
    exception that ended the thread, such as a full disk.
    """

    def __init__(self, path: Path):
        self.waiting: queue.SimpleQueue[Record] = queue.SimpleQueue()
        self.failed: Exception | None = None
        self.path = path
        self.closing = threading.Event()
        # Its first use makes pyarrow import what it can, half a second's work that must not fall under load.
        _batch([])
        self.thread = threading.Thread(target=self._work, name="records")
        self.thread.start()

    def put(self, record: Record) -> None:
        self.waiting.put(record)

    def _work(self) -> None:
        try:
            with (
                self.path.open("wb") as sink,
                pa.ipc.new_stream(sink, SCHEMA, options=OPTIONS) as stream,
            ):
                while not self.closing.is_set() or not self.waiting.empty():
                    for records in self._gather():
                        stream.write_batch(_batch(records))
                    sink.flush()
        except Exception as error:  # told by close() and seen by the run, which ends for it
            self.failed = error

    def _gather(self) -> Iterator[list[Record]]:
        """What has come in a tenth of a second, or in a second while it is little, in batches."""
        for _ in range(STEPS):
            if self.closing.wait(FLUSH_S / STEPS) or self.waiting.qsize() >= BUSY:
                break
        batch, size = [], 0
        for _ in range(self.waiting.qsize()):
            batch.append(self.waiting.get())
            size += len(batch[-1].wire)
            if size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def close(self) -> None:
        """Write what is left; raises what ended the thread, if anything did."""
        self.closing.set()
        self.thread.join()
        if self.failed:
            raise self.failed


def _batch(records: list[Record]) -> pa.RecordBatch:
    columns: dict[str, list[Any]] = {
        name: [getattr(record, name) for record in records] for name in SCHEMA.names
    }
    columns["read_bytes"] = [
        np.frombuffer(sizes, dtype=np.int32) for sizes in columns["read_bytes"]
    ]
    return pa.RecordBatch.from_pydict(columns, schema=SCHEMA)


@contextmanager
def writing(path: Path) -> Iterator[Writer]:
    writer = Writer(path)
    try:
        yield writer
    finally:
        writer.close()


def merge(parts: Sequence[Path], target: Path) -> None:
    """Join the streams of several writers into one file, and remove them; a part that was never begun is none."""
    with target.open("wb") as sink, pa.ipc.new_stream(sink, SCHEMA, options=OPTIONS) as stream:
        for part in parts:
            for batch in batches(part) if part.exists() else ():
                stream.write_batch(batch)
            part.unlink(missing_ok=True)


def batches(path: Path) -> Iterator[pa.RecordBatch]:
    """All whole batches of a stream of records; of one cut short, those before the cut."""
    count = 0
    with path.open("rb") as source:
        try:
            with pa.ipc.open_stream(source) as stream:
                for batch in stream:
                    yield batch
                    count += 1
        except (pa.ArrowInvalid, OSError, EOFError) as error:
            log.warning("%s was cut short after %d batches: %s", path, count, error)
