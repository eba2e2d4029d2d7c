"""One record a request, failed ones too: raw facts only. Stored as an Arrow stream, batch by batch.

A stream that was cut short can be read up to its last whole batch.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pyarrow as pa

log = logging.getLogger(__name__)
FLUSH_S = 1.0

SCHEMA = pa.schema(
    [
        ("user", pa.int32()),
        ("turn", pa.int32()),
        ("phase", pa.string()),
        ("prompt", pa.int32()),
        ("scheduled_ns", pa.int64()),
        ("sent_ns", pa.int64()),
        ("headers_ns", pa.int64()),
        ("done_ns", pa.int64()),
        ("status", pa.int32()),
        ("outcome", pa.string()),
        ("error", pa.string()),
        ("read_ns", pa.list_(pa.int64())),
        ("read_bytes", pa.list_(pa.int32())),
        ("body", pa.binary()),
    ]
)


@dataclass
class Record:
    """What happened to one request. Times are perf_counter_ns (CLOCK_MONOTONIC); None for what never came.

    phase         'warmup' or 'load'
    prompt        index in the list of bodies
    scheduled_ns  when its user was free to send it;  sent_ns  when its bytes were handed to the socket
    read_ns       when each read returned;  read_bytes  how many bytes it gave;  body  all of them, joined
    outcome       'complete' (the response ended as HTTP says it must), 'overloaded' (429 or 503), 'http_error' (any
                  other status but 200), 'connect_error', 'disconnected' (cut off), 'timeout', 'cancelled' (by the end of the run)
    """

    user: int
    turn: int
    phase: str
    prompt: int
    scheduled_ns: int
    sent_ns: int | None = None
    headers_ns: int | None = None
    done_ns: int | None = None
    status: int | None = None
    outcome: str = "cancelled"
    error: str | None = None
    read_ns: list[int] = field(default_factory=list)
    read_bytes: list[int] = field(default_factory=list)
    body: bytes = b""


class Writer:
    """Takes records from the event loop without waiting; a thread writes them, about once a second.

    `failed` is the exception that ended the thread, such as a full disk.
    """

    def __init__(self, path: Path):
        self.waiting: queue.SimpleQueue[Record] = queue.SimpleQueue()
        self.failed: Exception | None = None
        self.path = path
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self._work, name="records")
        self.thread.start()

    def put(self, record: Record) -> None:
        self.waiting.put(record)

    def _work(self) -> None:
        try:
            options = pa.ipc.IpcWriteOptions(compression="zstd")
            with self.path.open("wb") as sink, pa.ipc.new_stream(sink, SCHEMA, options=options) as stream:
                while not self.closing.is_set() or not self.waiting.empty():
                    records = self._gather()
                    if records:
                        columns = {name: [getattr(record, name) for record in records] for name in SCHEMA.names}
                        stream.write_batch(pa.RecordBatch.from_pydict(columns, schema=SCHEMA))
                        sink.flush()
        except Exception as error:  # told by close() and seen by the run, which ends for it
            self.failed = error

    def _gather(self) -> list[Record]:
        """The records of about one second."""
        self.closing.wait(FLUSH_S)
        return [self.waiting.get() for _ in range(self.waiting.qsize())]

    def close(self) -> None:
        """Write what is left; raises what ended the thread, if anything did."""
        self.closing.set()
        self.thread.join()
        if self.failed:
            raise self.failed


@contextmanager
def writing(path: Path) -> Iterator[Writer]:
    writer = Writer(path)
    try:
        yield writer
    finally:
        writer.close()


def read(path: Path) -> pd.DataFrame:
    """All whole batches of a stream of records, one row a record; one cut short gives what came before the cut.

    Integers that may be missing are pandas' nullable ones: a float would round nanoseconds.
    """
    batches = []
    with path.open("rb") as source:
        try:
            with pa.ipc.open_stream(source) as stream:
                for batch in stream:
                    batches.append(batch)
        except (pa.ArrowInvalid, OSError, EOFError) as error:
            log.warning("%s was cut short after %d batches: %s", path, len(batches), error)
    nullable = {pa.int32(): pd.Int32Dtype(), pa.int64(): pd.Int64Dtype()}
    return pa.Table.from_batches(batches, SCHEMA).to_pandas(types_mapper=nullable.get)
