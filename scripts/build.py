"""Build what a backend serves from a model's weights: an engine, a compiled library, or nothing."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import backends
import command
import job
import runtime
import telemetry
from download import CHECKPOINTS, gguf_type
from failure import Failure
from manifest import Manifest
from runtime import Launch, Mount
from spec import Backend, from_json

log = logging.getLogger(__name__)
WEIGHTS_AT, ENGINE_AT, PROGRAMS_AT = "/weights", "/engine", "/programs"


def steps(backend: Backend, weights: Manifest, environment: Manifest, spec: dict[str, Any], folder: Path) -> tuple[list[backends.Command], tuple[Mount, ...]]:
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
        programs=Path(PROGRAMS_AT) if runs.CONTAINED else CHECKPOINTS,
        **spec["server"],
    )
    return adapter.steps(build), (*mounts, Mount(folder, ENGINE_AT, writable=True), Mount(CHECKPOINTS, PROGRAMS_AT))


def main() -> None:
    args = job.arguments(__doc__, "weights", "environment")
    weights, environment = Manifest.load(args.weights), Manifest.load(args.environment)
    backend: Backend = from_json(Backend, args.spec["backend"])
    adapter = backends.load(backend.adapter)

    def build(folder: Path) -> dict[str, Any]:
        form = next((name for name in adapter.WEIGHTS if name in weights.facts), None)
        if form is None:
            have = ", ".join(sorted({"hf", "gguf", "openvino"} & set(weights.facts)))
            raise Failure("bad_model", f"{backend.adapter} loads {' or '.join(adapter.WEIGHTS)} weights; {weights.facts['origin']} has {have}.", "Use another model or backend.")
        layout = weights.facts.get("layout")
        if form == "hf" and layout and layout not in adapter.LAYOUTS:
            able = f"it loads: {', '.join(sorted(adapter.LAYOUTS))}" if adapter.LAYOUTS else "it loads unquantized ones alone"
            raise Failure("bad_model", f"{backend.adapter} cannot load checkpoints quantized as '{layout}'; {able}.", "Name the backends that can in `backends` of the model.")
        commands, mounts = steps(backend, weights, environment, args.spec, folder) if backend.builds else ([], ())
        if not commands:
            return backends.loaded_as_it_is(weights, form)
        gpus = telemetry.allocated(args.spec["server"]["tensor_parallel"]) if "gpu" in adapter.DEVICES else ()
        peak = 0
        with tempfile.TemporaryDirectory() as scratch:
            for number, step in enumerate(commands, 1):
                log.info("step %d of %d: %s", number, len(commands), " ".join(step.argv[:6]))
                took = command.run(
                    Launch(
                        step.argv,
                        step.env | backend.env,
                        args.log.with_suffix(f".{number}.log"),
                        Path(backend.workdir or scratch),
                        gpus=tuple(gpu["uuid"] for gpu in gpus),
                        image=environment.facts.get("image", ""),
                        through_entrypoint=step.through_entrypoint,
                        mounts=mounts,
                        network=True,
                        user=backend.user,
                        label=f"build {args.output.stem}",
                    ),
                    backend.runtime,
                    "build_failed",
                )
                peak = max(peak, took)
        told: dict[str, Any] = {name: weights.facts[name] for name in ("origin", "random") if name in weights.facts}
        quantization = args.spec["quantization"]
        made_of = f"{quantization['type']} of " if quantization["method"] in adapter.METHODS else ""
        ggufs = sorted(folder.glob("*.gguf"))
        kind = f"GGUF {gguf_type(ggufs[0])}, from" if ggufs else f"{backend.adapter} engine,"
        return {
            "engine": ".",
            "form": f"{kind} {made_of}{weights.facts[f'{form}_form']}",
            "gpu": [gpu["name"] for gpu in gpus],
            "peak_memory_bytes": peak,
            **told,
        }

    job.prepare(args, "build", build, [weights, environment])


if __name__ == "__main__":
    main()
