"""Records into metrics, and the sanity of the answers: of each cell of a session summary.json, and requests.parquet beside it.

A summary that an earlier run made of the very same cell is kept.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from loadgen.reader import read
from metrics import answers, cells, client, machine, requests
from pipeline import results, stage
from pipeline.artifact import Manifest, Unreadable, read_json, sha256, write_json

log = logging.getLogger(__name__)


def summarize(
    cell: dict[str, Any],
    records: Path,
    tokenizer: Tokenizer,
    calibration: dict[str, Any],
    slo: dict[str, float],
    table: Path,
) -> dict[str, Any]:
    """{metrics, evaluation, machine, machine_line} of one measured cell; writes its request frame to `table`."""
    if sha256(records) != cell["records"]["sha256"]:
        raise SystemExit(
            f"{records} is not the file that was measured: its hash has changed. "
            f"Remove the folder {records.parent} to measure its cell again."
        )
    sent, asked = read(records), cell["asked_tokens"]
    spec, course, rows = cell["spec"]["cell"], cell["course"], cell["telemetry"]
    frame = requests.frame(sent, tokenizer)
    frame.to_parquet(table, index=False)
    open_loop = spec["offered"]["kind"] != "users"
    health = client.health(frame, course, calibration, cell["host"], open_loop)
    said = [] if cell["random"] else answers.read(sent, asked)
    return {
        "metrics": cells.summary(frame, course, slo, asked) | {"client": health},
        "evaluation": answers.evaluate(
            said, bool(said) and spec["workload"]["output_length"] == "forced"
        ),
        "machine": machine.over(rows, course["window_start_ns"], course["window_end_ns"]),
        "machine_line": machine.time_line(rows, course),
    }


def without_nan(value: Any) -> Any:
    """JSON has no NaN: None in its place."""
    if isinstance(value, dict):
        return {name: without_nan(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def kept(target: Path, key: str, made_of: list[str]) -> bool:
    """Whether the summary is there already, of this key and made of this very cell and calibration."""
    try:
        found = read_json(target) if target.exists() else {}
    except Unreadable as error:
        log.warning("%s", error)
        return False
    whole = "metrics" not in found or target.with_name("requests.parquet").is_file()
    return whole and found.get("key") == key and found.get("made_of") == made_of


def main() -> None:
    job = stage.task(__doc__)
    [session], [calibration_file] = job.inputs["session"], job.inputs["calibration"]
    calibration, calibrated = read_json(calibration_file), sha256(calibration_file)
    tokenizer: Tokenizer | None = None
    parts = {}
    for name, keys in job.spec["cells"].items():
        source = session.parent / name / "cell.json"
        target = job.output.parent / name / "summary.json"
        made_of = [sha256(source), calibrated]
        table = target.with_name("requests.parquet")
        if not kept(target, keys["summary"], made_of):
            cell = read_json(source)
            told = {entry: value for entry, value in cell.items() if entry != "telemetry"}
            result: dict[str, Any] = {"key": keys["summary"], "made_of": made_of, "cell": told}
            result["evaluation"] = answers.evaluate([])
            target.parent.mkdir(parents=True, exist_ok=True)
            table.unlink(missing_ok=True)
            if not cell["failure"]:
                log.info("%s", name)
                tokenizer = tokenizer or tokenizer_of(job.manifest("model"))
                records = source.with_name("records.arrow")
                result |= summarize(cell, records, tokenizer, calibration, job.spec["slo"], table)
            write_json(target, without_nan(result))
        parts[f"{name}/summary.json"] = results.part(target)
        if table.exists():
            parts[f"{name}/requests.parquet"] = results.part(table)
    made_of_results = results.made_of(session, calibration_file)
    results.write(job.output, {"key": job.key, "parts": parts, "made_of": made_of_results})


def tokenizer_of(model: Manifest) -> Tokenizer:
    return Tokenizer.from_file(str(model.file("tokenizer") / "tokenizer.json"))


if __name__ == "__main__":
    main()
