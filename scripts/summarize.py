"""Records into metrics: summary.json for the cell and its time line, requests.parquet beside it for every request."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

import job
from manifest import Manifest, sha256, write_json
from metrics import cells, client, machine, requests
from metrics.records import read

log = logging.getLogger(__name__)


def summarize(cell: dict[str, Any], records: Path, tokenizer: Tokenizer, calibration: dict[str, Any], slo: dict[str, float], table: Path) -> dict[str, Any]:
    """The metrics of one measured cell; writes its request frame to `table`."""
    if sha256(records) != cell["records"]["sha256"]:
        raise SystemExit(f"{records} is not the file that was measured: its hash has changed. Remove {records.with_name('cell.json')} to measure again.")
    frame = requests.frame(read(records), tokenizer)
    frame.to_parquet(table, index=False)
    open_loop = cell["spec"]["cell"]["offered"]["kind"] != "users"
    return cells.summary(frame, cell["course"], slo, cell["asked_tokens"]) | {"client": client.health(frame, cell["course"], calibration, cell["host"], open_loop)}


def without_nan(value: Any) -> Any:
    """JSON has no NaN: None in its place."""
    if isinstance(value, dict):
        return {name: without_nan(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def main() -> None:
    args = job.arguments(__doc__, "cell", "evaluation", "model", "calibration")
    cell = json.loads(args.cell.read_text())
    args.output.parent.mkdir(parents=True, exist_ok=True)
    result = {"cell": {name: value for name, value in cell.items() if name != "telemetry"}, "evaluation": json.loads(args.evaluation.read_text())}
    if not cell["failure"]:
        tokenizer = Tokenizer.from_file(str(Manifest.load(args.model).file("tokenizer") / "tokenizer.json"))
        metrics = summarize(
            cell, args.cell.with_name("records.arrow"), tokenizer, json.loads(args.calibration.read_text()), args.spec["slo"], args.output.with_name("requests.parquet")
        )
        rows, course = cell["telemetry"], cell["course"]
        result |= {"metrics": metrics, "machine": machine.over(rows, course["window_start_ns"], course["window_end_ns"]), "machine_line": machine.time_line(rows, course)}
    write_json(args.output, without_nan(result))


if __name__ == "__main__":
    main()
