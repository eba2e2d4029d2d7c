"""A stage run by hand: its task in a file, as the workflow writes it, and its command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def arguments(folder: Path, name: str, spec: dict[str, Any], **inputs: Path) -> list[str]:
    """The options of a stage that reads these results or files, logs to `log` and writes `<name>.json`, all in the folder."""
    task = {"spec": spec, "code": "", "inputs": {key: [str(path)] for key, path in inputs.items()}}
    (folder / f"{name}.task.json").write_text(json.dumps(task))
    output = folder / f"{name}.json"
    return [
        "--spec",
        str(folder / f"{name}.task.json"),
        "--log",
        str(folder / "log"),
        "--output",
        str(output),
    ]
