"""Run a server from an image file with Apptainer: no engine, no privileges, the host's network."""

from __future__ import annotations

import dataclasses
import logging
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.failure import Failure
from pipeline.spec import Environment
from runtime import Launch, process

log = logging.getLogger(__name__)
CONTAINED = True
OWN_NETWORK = False


def command(launch: Launch) -> list[str]:
    """The server's command inside the image: its own file system but for the mounts, an environment of its own, GPUs by --nv."""
    argv = [
        "apptainer",
        "run" if launch.through_entrypoint else "exec",
        "--containall",
        "--writable-tmpfs",
        "--pwd",
        "/tmp",  # noqa: S108 -- inside the container
    ]
    argv += ["--nv"] if launch.gpus else []
    for mount in launch.mounts:
        argv += ["--bind", f"{mount.host}:{mount.inside}:{'rw' if mount.writable else 'ro'}"]
    visible = {"CUDA_VISIBLE_DEVICES": ",".join(launch.gpus)} if launch.gpus else {}
    for name, value in ({"HOME": "/tmp"} | launch.env | visible).items():  # noqa: S108 -- inside the container
        argv += ["--env", f"{name}={value}"]
    return [*argv, launch.image, *launch.argv]


@contextmanager
def serve(launch: Launch) -> Iterator[process.Process]:
    """Apptainer's process is the server's parent, so the process runtime's supervisor ends it."""
    with process.serve(dataclasses.replace(launch, argv=command(launch), env={})) as server:
        yield server


def prepare(environment: Environment, folder: Path) -> dict[str, Any]:
    """Turn the image into a file in the store."""
    if environment.kind == "container":
        raise Failure(
            "image_missing",
            f"containers/{environment.image} is built by docker or podman.",
            "Push what they build to a registry, and name it as `image`.",
        )
    target = folder / "image.sif"
    try:
        with subprocess.Popen(
            ["apptainer", "pull", str(target), f"docker://{environment.image}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as run:
            assert run.stdout
            lines = []
            for line in run.stdout:
                lines.append(line)
                log.info("%s", line.rstrip()[:160])
    except FileNotFoundError as error:
        raise Failure(
            "no_engine",
            "There is no apptainer on the PATH.",
            "Install it or load its module; or write another `runtime` in the configuration.",
        ) from error
    if run.returncode:
        raise Failure(
            "image_missing",
            f"The image {environment.image} cannot be had: {lines[-1].strip() if lines else ''}",
            "Correct `image`.",
            "".join(lines[-25:]),
        )
    return {
        "runtime": "apptainer",
        "image": str(target),
        "digests": [environment.image],
        "python": "python3",
        "packages": {},
        "versions": {"image": environment.image},
    }


def missing(facts: dict[str, Any]) -> str | None:
    return None if Path(facts["image"]).is_file() else f"{facts['image']} is gone"
