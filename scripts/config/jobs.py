"""The stages of the pipeline, and what a job is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from pipeline import store

# Every stage, in the order of the pipeline, and the names of its jobs: what their paths are made of.
STAGES = {
    "environment": "{environment}",
    "download": "{model}",
    "prompts": "{model}/{workload}",
    "texts": "{model}/{use}",
    "quantize": "{model}/{quantization}",
    "build": "{model}/{quantization}/{backend}",
    "reference": "{model}",
    "calibrate": "client",
    "measure": "{model}/{quantization}/{backend}/t{trial}",
    "summarize": "{model}/{quantization}/{backend}/t{trial}",
    "assess": "{model}/{quantization}/{backend}",
    "report": "page",
}
# Stages whose result is the file itself; the others' bytes lie in the store, and their file is its manifest.
RESULTS = ("calibrate", "measure", "summarize", "assess", "report")


@dataclass(frozen=True, eq=False)
class Job:
    """One job: `name` is its part of every path, `spec` sorted JSON, `code` a fingerprint; `inputs` are the jobs whose results
    it reads, `files` the local files, both by name. `parts`: the files beside its result that must be there with it."""

    stage: str
    name: str
    spec: str
    code: str
    inputs: dict[str, list[Job]]
    files: dict[str, str]
    parts: tuple[str, ...] = ()

    @cached_property
    def key(self) -> str:
        return store.key(json.loads(self.spec), self.code)

    def walk(self) -> Iterator[Job]:
        """This job and all that it rests on, each once, what is needed first."""
        seen: set[Job] = set()

        def visit(job: Job) -> Iterator[Job]:
            if job in seen:
                return
            seen.add(job)
            for needed in job.inputs.values():
                for one in needed:
                    yield from visit(one)
            yield job

        return visit(self)
