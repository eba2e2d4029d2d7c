"""Records as the load generator wrote them, as a pandas frame."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa

from loadgen import record


def read(path: Path) -> pd.DataFrame:
    """One row a record, with the columns of loadgen.record.SCHEMA; a file cut short gives what came before the cut.

    Integers that may be missing are pandas' nullable ones: a float would round nanoseconds.
    """
    nullable = {pa.int32(): pd.Int32Dtype(), pa.int64(): pd.Int64Dtype()}
    return pa.Table.from_batches(record.batches(path), record.SCHEMA).to_pandas(
        types_mapper=nullable.get
    )
