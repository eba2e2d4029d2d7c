"""Build what a backend serves from a model's weights: an engine, a compiled library, or nothing."""

from __future__ import annotations

import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import backends
import job
import runtime
import telemetry
from failure import Failure
from manifest import Manifest
from runtime import Launch, Mount
from spec import Backend, from_json

log = logging.getLogger(__name__)
WEIGHTS_AT, ENGINE_AT = "/weights", "/engine"
POLL_S, PROGRESS_S = 0.2, 30


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
        **spec["server"],
    )
    return adapter.steps(build), (*mounts, Mount(folder, ENGINE_AT, writable=True))


def run(launch: Launch, backend: Backend) -> int:
    """Run one command to its end; gives the largest memory of its processes together, bytes. Failure `build_failed` with its last words."""
    started = told = time.monotonic()
    peak = 0
    with runtime.load(backend.runtime).serve(launch) as process:
        while (code := process.exit_code()) is None:
            time.sleep(POLL_S)
            peak = max(peak, telemetry.resident(process.tree()))
            if time.monotonic() - told > PROGRESS_S:
                told = time.monotonic()
                log.info("%s: %.0f s  %s", Path(launch.argv[0]).name, told - started, runtime.tail(launch.log_file, 1)[:160])
        if code:
            if process.out_of_memory():
                raise Failure("build_failed", f"{launch.argv[0]} ran out of memory.", "Build on a larger machine, or a smaller model.", runtime.tail(launch.log_file))
            raise Failure("build_failed", f"{' '.join(launch.argv[:4])} ended with exit code {code}.", "Its last words stand in the log.", runtime.tail(launch.log_file))
    return peak


def main() -> None:
    args = job.arguments(__doc__, "weights", "environment")
    weights, environment = Manifest.load(args.weights), Manifest.load(args.environment)
    backend: Backend = from_json(Backend, args.spec["backend"])
    adapter = backends.load(backend.adapter)

    def build(folder: Path) -> dict[str, Any]:
        if adapter.WEIGHTS not in weights.facts:
            have = ", ".join(sorted({"hf", "gguf"} & set(weights.facts)))
            raise Failure("bad_model", f"{backend.adapter} loads {adapter.WEIGHTS} weights; {weights.facts['origin']} has {have}.", "Use another model or backend.")
        layout = weights.facts.get("layout")
        if adapter.WEIGHTS == "hf" and layout and layout not in adapter.LAYOUTS:
            able = f"it loads: {', '.join(sorted(adapter.LAYOUTS))}" if adapter.LAYOUTS else "it loads unquantized ones alone"
            raise Failure("bad_model", f"{backend.adapter} cannot load checkpoints quantized as '{layout}'; {able}.", "Name the backends that can in `backends` of the model.")
        if not backend.builds:
            return backends.loaded_as_it_is(weights, adapter.WEIGHTS)
        gpus = telemetry.allocated(args.spec["server"]["tensor_parallel"]) if "gpu" in adapter.DEVICES else ()
        commands, mounts = steps(backend, weights, environment, args.spec, folder)
        peak = 0
        with tempfile.TemporaryDirectory() as scratch:
            for number, command in enumerate(commands, 1):
                log.info("step %d of %d: %s", number, len(commands), " ".join(command.argv[:6]))
                took = run(
                    Launch(
                        command.argv,
                        command.env | backend.env,
                        args.log.with_suffix(f".{number}.log"),
                        Path(backend.workdir or scratch),
                        gpus=tuple(gpu["uuid"] for gpu in gpus),
                        image=environment.facts.get("image", ""),
                        through_entrypoint=command.through_entrypoint,
                        mounts=mounts,
                        network=True,
                        user=backend.user,
                        label=f"build {args.output.stem}",
                    ),
                    backend,
                )
                peak = max(peak, took)
        told: dict[str, Any] = {name: weights.facts[name] for name in ("origin", "random") if name in weights.facts}
        quantization = args.spec["quantization"]
        made_of = f"{quantization['type']} of " if quantization["method"] != "none" else ""
        return {
            "engine": ".",
            "form": f"{backend.adapter} engine, {made_of}{weights.facts[f'{adapter.WEIGHTS}_form']}",
            "gpu": [gpu["name"] for gpu in gpus],
            "peak_memory_bytes": peak,
            **told,
        }

    job.prepare(args, "build", build, [weights, environment])


if __name__ == "__main__":
    main()
