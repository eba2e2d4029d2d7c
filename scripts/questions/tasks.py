"""Let lm-evaluation-harness score its tasks by a running server."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from pipeline.failure import Failure
from pipeline.spec import Tasks
from questions.ask import AT_ONCE
from runtime import Launch, command
from runtime.server import Prepared


def harness(python: str, tasks: Tasks, *arguments: str) -> list[str]:
    """A command line of lm-evaluation-harness about these tasks."""
    return [
        python,
        "-m",
        "lm_eval",
        *arguments,
        "--tasks",
        ",".join(tasks.names),
        *(["--include_path", tasks.path] if tasks.path else []),
    ]


def launch(argv: list[str], tasks: Tasks, log_file: Path, scratch: str) -> Launch:
    """From the folder of the local tasks, so that they can name the data beside them."""
    return Launch(
        argv,
        {"TOKENIZERS_PARALLELISM": "false", "DO_NOT_TRACK": "1"},
        log_file,
        Path(tasks.path or scratch),
    )


def see_tasks(python: str, tasks: Tasks, log_file: Path) -> None:
    """Failure `no_task` where one is not known, or cannot be scored by likelihoods."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            command.run(
                launch(harness(python, tasks, "validate"), tasks, log_file, scratch),
                "process",
                "no_task",
            )
        except Failure as error:
            said = [
                line
                for line in error.log_tail.splitlines()
                if "not found" in line.lower() or "did you mean" in line.lower()
            ]
            raise Failure(
                "no_task",
                f"lm-evaluation-harness does not know all of {', '.join(tasks.names)}. {' '.join(said)}",
                "Correct evaluation.tasks.names.",
                error.log_tail,
            ) from error


def score(
    python: str, tasks: Tasks, ready: Prepared, tokenizer: Path, log_file: Path
) -> dict[str, Any]:
    """What lm-evaluation-harness says of each task: {task: {metric: value, ...}}; it asks the running server."""
    model = f"model={ready.settings.served_name},base_url={ready.url}/v1/completions,tokenizer={tokenizer},tokenizer_backend=huggingface"
    model += f",num_concurrent={AT_ONCE},max_length={ready.settings.context_length},max_retries=1"
    with tempfile.TemporaryDirectory() as scratch:
        told = Path(scratch, "told.json")
        options = [
            "--model",
            "local-completions",
            "--model_args",
            model,
            "--limit",
            str(tasks.limit),
            "--num_fewshot",
            str(tasks.shots),
        ]
        options += ["--seed", str(ready.served.seed), "--output_path", str(told)]
        command.run(
            launch(harness(python, tasks, "run", *options), tasks, log_file, scratch),
            "process",
            "no_answer",
        )
        [written] = Path(scratch).glob("told*.json")
        made = json.loads(written.read_text())
    return {
        name: {"items": made["n-samples"][name]["effective"], **entry}
        for name, entry in made["results"].items()
    }
