"""Build what a backend serves from a model's weights: an engine, a compiled library, or nothing."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import backends
import runtime
from foreign import PROGRAMS
from host.gpus import allocated
from models.checkpoint import gguf_type
from pipeline import stage
from pipeline.artifact import Manifest
from pipeline.failure import Failure
from pipeline.spec import Backend, from_json
from pipeline.stage import Task
from runtime import Launch, Mount, command

log = logging.getLogger(__name__)
WEIGHTS_AT, ENGINE_AT, PROGRAMS_AT = "/weights", "/engine", "/programs"


def steps(
    backend: Backend, weights: Manifest, environment: Manifest, spec: dict[str, Any], folder: Path
) -> tuple[list[backends.Command], tuple[Mount, ...]]:
    """The commands of a build, and the mounts they need where they run in a container."""
    adapter, runs = backends.load(backend.adapter), runtime.load(backend.runtime)
    seen, mounts = runtime.placed(runs, weights, WEIGHTS_AT)
    build = backends.Build(
        weights=seen,
        folder=Path(ENGINE_AT) if runs.CONTAINED else folder,
        python=environment.facts["python"],
        method=spec["quantization"]["method"],
        type=spec["quantization"].get("type"),
        options=adapter.Options(**backend.options),
        trust_remote_code=spec["trust_remote_code"],
        programs=Path(PROGRAMS_AT) if runs.CONTAINED else PROGRAMS,
        **spec["server"],
    )
    return adapter.steps(build), (
        *mounts,
        Mount(folder, ENGINE_AT, writable=True),
        Mount(PROGRAMS, PROGRAMS_AT),
    )


def build(job: Task, weights: Manifest, environment: Manifest, folder: Path) -> dict[str, Any]:
    """Facts of the engine, made in `folder`; of the weights themselves where they are served as they are."""
    backend: Backend = from_json(Backend, job.spec["backend"])
    adapter = backends.load(backend.adapter)
    form = loadable(backend, weights)
    commands, mounts = (
        steps(backend, weights, environment, job.spec, folder) if backend.builds else ([], ())
    )
    if not commands:
        return backends.loaded_as_it_is(weights, form)
    gpus = allocated(job.spec["server"]["tensor_parallel"]) if "gpu" in adapter.DEVICES else []
    peak = 0
    with tempfile.TemporaryDirectory() as scratch:
        for number, step in enumerate(commands, 1):
            log.info("step %d of %d: %s", number, len(commands), " ".join(step.argv[:6]))
            launch = Launch(
                step.argv,
                step.env | backend.env,
                job.log.with_suffix(f".{number}.log"),
                Path(backend.workdir or scratch),
                gpus=tuple(gpu["uuid"] for gpu in gpus),
                image=environment.facts.get("image", ""),
                through_entrypoint=step.through_entrypoint,
                mounts=mounts,
                network=True,
                user=backend.user,
                label=f"build {job.output.parent.name}",
            )
            peak = max(peak, command.run(launch, backend.runtime, "build_failed"))
    return {
        "engine": ".",
        "form": form_of_engine(job, backend, weights, form, folder),
        "gpu": [gpu["name"] for gpu in gpus],
        "peak_memory_bytes": peak,
        **{name: weights.facts[name] for name in ("origin", "random") if name in weights.facts},
    }


def loadable(backend: Backend, weights: Manifest) -> str:
    """The form of the weights that the backend loads: hf, gguf, openvino; Failure `bad_model` if it loads none of theirs."""
    adapter = backends.load(backend.adapter)
    form = next((name for name in adapter.WEIGHTS if name in weights.facts), None)
    if form is None:
        have = ", ".join(sorted({"hf", "gguf", "openvino"} & set(weights.facts)))
        reason = f"{backend.adapter} loads {' or '.join(adapter.WEIGHTS)} weights; {weights.facts['origin']} has {have}."
        raise Failure("bad_model", reason, "Use another model or backend.")
    layout = weights.facts.get("layout")
    if form == "hf" and layout and layout not in adapter.LAYOUTS:
        able = (
            f"it loads: {', '.join(sorted(adapter.LAYOUTS))}"
            if adapter.LAYOUTS
            else "it loads unquantized ones alone"
        )
        reason = f"{backend.adapter} cannot load checkpoints quantized as '{layout}'; {able}."
        raise Failure("bad_model", reason, "Name the backends that can in `backends` of the model.")
    return form


def form_of_engine(job: Task, backend: Backend, weights: Manifest, form: str, folder: Path) -> str:
    """What the engine is, in words."""
    quantization = job.spec["quantization"]
    own = quantization["method"] in backends.load(backend.adapter).METHODS
    ggufs = sorted(folder.glob("*.gguf"))
    kind = f"GGUF {gguf_type(ggufs[0])}, from" if ggufs else f"{backend.adapter} engine,"
    made_of = f"{quantization['type']} of " if own else ""
    return f"{kind} {made_of}{weights.facts[f'{form}_form']}"


def main() -> None:
    job = stage.task(__doc__)
    weights, environment = job.manifest("weights"), job.manifest("environment")
    stage.prepare(
        job,
        "build",
        lambda folder: build(job, weights, environment, folder),
        [weights, environment],
    )


if __name__ == "__main__":
    main()
