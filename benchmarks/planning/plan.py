"""What planning costs: a dry run of many cells, and a run that has nothing to do.

    python benchmarks/planning/plan.py [--served 107 --trials 3 --loads 32]

Makes an experiment of that many served models, trials and loads in a folder of its own, with the paced backend of the
tests, and lets Snakemake plan it: with no results, and with results as a finished run leaves them (their heads alone,
nothing is measured). Prints seconds of CPU, of wall time and the largest resident memory of each.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
PRODUCT = ("Snakefile", "rules", "scripts", "report", "profiles", "prompts", "envs", "config.yaml")
sys.path.insert(0, str(ROOT / "scripts"))

import numpy as np
import yaml
from safetensors.numpy import save_file

# Run in the folder of the experiment, with its own code: write the results of a finished run.
FINISH = """
import json, sys
sys.path.insert(0, "scripts")
from pathlib import Path
import yaml
from config import experiment
from config.jobs import RESULTS
from config.plan import Plan
from pipeline import results
from pipeline.artifact import Manifest
from pipeline.spec import Offered
plan = Plan(experiment.load(yaml.safe_load(open("config.yaml"))), Path("scripts").resolve())
cells = 0
for job in plan.jobs.values():
    file = plan.files[job]
    if job.stage not in RESULTS:
        Manifest(job.stage, job.key, {}, "", "").save(file)
        continue
    parts = {}
    if job.stage == "measure":
        for cell in json.loads(job.spec)["cells"]:
            place = f"{cell['workload']}/{Offered(**cell['offered']).name}"
            cells += 1
            for name in ("cell.json", "records.arrow"):
                path = file.parent / place / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("{}")
                parts[f"{place}/{name}"] = results.part(path)
    if job.stage == "summarize":
        for place in json.loads(job.spec)["cells"]:
            for name in ("summary.json", "requests.parquet"):
                path = file.parent / place / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("{}")
                parts[f"{place}/{name}"] = results.part(path)
    if job.stage == "report":
        for name in ("report.html", "report.md", "summary.csv"):
            (plan.folder / name).write_text("")
            file.parent.mkdir(parents=True, exist_ok=True)
            parts[f"../../{name}"] = results.part(plan.folder / name)
    needed = [plan.files[one] for inputs in job.inputs.values() for one in inputs if one.stage in RESULTS]
    results.write(file, {"key": job.key, "parts": parts, "made_of": results.made_of(*needed)})
print(cells, sum(job.stage == "measure" for job in plan.jobs.values()), len(plan.jobs))
"""


def experiment(served: int, trials: int, loads: int) -> dict[str, Any]:
    """A configuration with so many served models, trials and loads."""
    return {
        "results": "results",
        "trials": trials,
        "models": [{"name": "tiny", "source": "folder", "path": "tiny-model"}],
        "quantizations": [{"name": "none", "method": "none"}],
        "backends": [{"name": f"b{number}", "adapter": "paced"} for number in range(served)],
        "workloads": [
            {
                "name": "chat",
                "prompts": {"source": "file", "path": "prompts/showdown.jsonl"},
                "max_tokens": 8,
            }
        ],
        "concurrencies": list(range(1, loads + 1)),
        "load": {},
        "server": {"max_sequences": loads},
    }


def prepare(folder: Path, config: dict[str, Any]) -> None:
    """The product with the tests' paced backend and a model of one tensor."""
    for name in PRODUCT:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / name)
    shutil.copy(ROOT / "tests/paced/paced.py", folder / "scripts/backends")
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    model = folder / "tiny-model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "tokenizer.json").write_text("{}")
    save_file({"weight": np.zeros((2, 2), dtype=np.float32)}, model / "model.safetensors")


def timed(folder: Path, command: list[str]) -> tuple[str, dict[str, float]]:
    """Run it; gives what it printed, and {cpu_s, wall_s, memory_mb} of it."""
    environment = os.environ | {"SHOWDOWN_STORE": str(folder / "store")}
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(said[-3000:])
    return said, {
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "wall_s": time.perf_counter() - started,
        "memory_mb": usage.ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--served", type=int, default=107)
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--loads", type=int, default=32)
    args = parser.parse_args()
    snakemake = [sys.executable, "-m", "snakemake", "--cores", "1", "--quiet", "all"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, experiment(args.served, args.trials, args.loads))
        _, plan = timed(folder, [*snakemake, "--dry-run"])
        said, _ = timed(folder, [sys.executable, "-c", FINISH])
        cells, sessions, jobs = map(int, said.split())
        _, nothing = timed(folder, snakemake)
        said, _ = timed(folder, [*snakemake[:-2], "--dry-run"])
        if "Nothing to be done" not in said:
            raise SystemExit(f"a finished run was not taken for one:\n{said[-3000:]}")
    print(f"{cells} cells in {sessions} sessions, {jobs} jobs")
    for what, took in (("plan", plan), ("nothing to do", nothing)):
        cost = ", ".join(f"{took[part]:.1f} {part.replace('_', ' ')}" for part in took)
        print(f"{what:14} {cost}")
    print(json.dumps({"cells": cells, "sessions": sessions, "plan": plan, "nothing": nothing}))


if __name__ == "__main__":
    main()
