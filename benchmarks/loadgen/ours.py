"""Our load generator as compare.py runs it: STREAMS users for WINDOW_S seconds from the first request on; prints one line of JSON.

python benchmarks/loadgen/ours.py PORT STREAMS WINDOW_S TOKENIZER [WORKERS]
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import uvloop
from tokenizers import Tokenizer

from loadgen import conversation, drive
from loadgen.reader import read
from loadgen.schedule import Shape
from loadgen.worker import Job
from metrics import cells
from metrics.requests import frame

BODY = {
    "model": "paced",
    "stream": True,
    "messages": [{"role": "user", "content": "Say something."}],
}


async def forever() -> None:
    await asyncio.Event().wait()


def main() -> None:
    port, streams, window_s, tokenizer = (
        int(sys.argv[1]),
        int(sys.argv[2]),
        float(sys.argv[3]),
        sys.argv[4],
    )
    shape = Shape(ramp_s=0, window_s=window_s, users=streams)
    workers = (
        int(sys.argv[5]) if len(sys.argv) > 5 else drive.workers_for(shape, os.cpu_count() or 1)
    )
    work = Job(
        "127.0.0.1",
        port,
        "/v1/chat/completions",
        timeout_s=60,
        shape=shape,
        seed=1,
        rest_s=0,
        warmup_requests=1,
        workers=workers,
    )
    with tempfile.TemporaryDirectory() as folder:
        records = Path(folder, "records.arrow")
        course = uvloop.run(
            drive.run(
                work,
                [[conversation.template(BODY)]],
                records,
                lambda line: print(line, file=sys.stderr),
                forever,
            )
        )
        table = read(records)
        # Only what was sent in the window: the load goes on behind it, and 10,000 answers a gigabyte.
        table = table[table.sent_ns < course.window_end_ns]
        found = cells.summary(frame(table, Tokenizer.from_file(tokenizer)), vars(course), {}, [200])

    print(
        json.dumps(
            {
                "tokens_per_s": found["output_token_throughput"],
                "ttft_ms": {name: found["ttft"][name] for name in ("p50", "p99")},
                "gap_ms": {name: found["chunk_gap"][name] for name in ("p50", "p99")},
                "cpu_cores": sum(course.cpu_shares),
                "lag_ms": course.lag_ms,
                "workers": workers,
                "unstamped": course.unstamped,
                "failed": found["failures"],
            }
        )
    )


if __name__ == "__main__":
    main()
