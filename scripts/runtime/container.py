"""Run a server in a container of an engine that speaks Docker's API, and leave none behind.

Four nets: `serve` removes the container when its block is left; a guard process (runtime/guard.py) removes it when the job
that started it is gone, even by SIGKILL; a sweep before each start removes what a killed guard left; a label says whose it is,
so that nothing of anybody else's is touched.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import psutil
import requests
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.models.containers import Container
from docker.types import DeviceRequest, Ulimit

from pipeline.failure import Failure
from pipeline.spec import Environment
from runtime import GRACE_S, Launch, alive, mark

log = logging.getLogger(__name__)
GUARD = Path(__file__).with_name("guard.py")
ROOT = Path(__file__).resolve().parent.parent.parent
LABEL, HOST, CELL = "showdown.owner", "showdown.host", "showdown.cell"
WHO_NONE = 65534
SHM_BYTES = 16 << 30
# Docker 20.10's, which newer engines and Podman speak as well.
API = "1.41"
PROGRESS_S = 5.0


@dataclass(frozen=True)
class Engine:
    """One of them: the variable that names its socket, the socket where it does not, and how GPUs are asked for."""

    name: str
    variable: str
    socket: str
    gpus: Callable[[tuple[str, ...]], dict[str, Any]]

    @property
    def address(self) -> str:
        return os.environ.get(self.variable) or self.socket


@contextmanager
def connected(engine: Engine) -> Iterator[docker.DockerClient]:
    """A client of the engine; Failure `no_engine` where none answers."""
    try:
        client = docker.DockerClient(base_url=engine.address, timeout=600, version=API)
        client.ping()
    except (DockerException, requests.RequestException) as error:
        remedy = f"Start it, or name its socket in {engine.variable}; or write `runtime: process` in the configuration."
        raise Failure(
            "no_engine",
            f"No {engine.name} engine answers at {engine.address}: {brief(error)}",
            remedy,
        ) from error
    try:
        yield client
    finally:
        client.close()


def brief(error: BaseException) -> str:
    return " ".join(str(getattr(error, "explanation", None) or error).split())[:300]


@dataclass
class Running:
    """A running server: its container, the log it writes, and when it was started (monotonic ns)."""

    container: Container
    log_file: Path
    started_ns: int

    def state(self) -> dict[str, Any]:
        self.container.reload()
        return dict(self.container.attrs["State"])

    def tree(self) -> list[psutil.Process]:
        """The container's processes, as the host sees them: only where the engine runs on this host."""
        try:
            first = psutil.Process(self.state()["Pid"] or -1)
            return [first, *first.children(recursive=True)]
        except (psutil.Error, ValueError, NotFound):
            return []

    def exit_code(self) -> int | None:
        state = self.state()
        return None if state["Running"] or state["Status"] == "created" else int(state["ExitCode"])

    def out_of_memory(self) -> bool:
        return bool(self.state().get("OOMKilled"))


@contextmanager
def serve(engine: Engine, launch: Launch) -> Iterator[Running]:
    """Start the server and remove its container when the block is left."""
    name = f"showdown-{os.getpid()}-{time.monotonic_ns() % 10**9}"
    labels = {LABEL: mark(), HOST: socket.gethostname(), CELL: launch.label}
    started_ns = time.perf_counter_ns()
    with (
        connected(engine) as client,
        guarded(engine, name),
        networked(client, name, labels, launch) as network,
    ):
        sweep(client)
        try:
            container = client.containers.create(
                **settings(launch, name, labels, network),
                **(engine.gpus(launch.gpus) if launch.gpus else {}),
            )
        except ImageNotFound as error:
            raise Failure(
                "image_missing",
                f"There is no image {launch.image} here.",
                "Run again: it is fetched or built first.",
            ) from error
        except (APIError, requests.RequestException) as error:
            raise refused(error, launch) from error
        try:
            try:
                container.start()
            except APIError as error:
                raise refused(error, launch) from error
            with following(container, launch.log_file):
                yield Running(container, launch.log_file, started_ns)
        finally:
            remove(container)


def refused(error: Exception, launch: Launch) -> Failure:
    """What the engine says when it will not start a container, as a Failure."""
    said = brief(error)
    if "could not select device driver" in said or (
        "nvidia-container" in said and "driver" not in said
    ):
        return Failure(
            "no_gpu",
            f"The engine cannot give a container a GPU: {said}",
            "Install the NVIDIA container toolkit and restart the engine.",
        )
    if "requirement error" in said or "unsatisfied condition" in said:
        return Failure(
            "driver_too_old",
            f"{launch.image} needs a newer driver: {said}",
            "Update the host's driver, or name an image built for an older CUDA.",
        )
    if "port is already allocated" in said or "address already in use" in said:
        return Failure(
            "port_taken",
            f"Port {launch.port[1] if launch.port else ''} of 127.0.0.1 is taken.",
            "Stop that program, or set server.port to another port or to null.",
        )
    return Failure(
        "start_failed",
        f"The engine could not start the container: {said}",
        "See what it says; the command stands in the report.",
    )


def settings(
    launch: Launch, name: str, labels: dict[str, str], network: str | None
) -> dict[str, Any]:
    """Arguments of containers.create: read-only mounts, one port of the loopback interface, no privileges.

    The user inside is the one who runs this, nobody in root's place, unless the configuration names another; its home is /tmp.
    """
    mine = os.getuid()
    user = launch.user or (f"{mine}:{os.getgid()}" if mine else f"{WHO_NONE}:{WHO_NONE}")
    for mount in launch.mounts:
        if mount.writable and not mine and not launch.user:
            os.chown(mount.host, WHO_NONE, WHO_NONE)
    made: dict[str, Any] = {
        "image": launch.image,
        "name": name,
        "command": launch.argv if launch.through_entrypoint else launch.argv[1:],
        "environment": {"HOME": "/tmp", "XDG_CACHE_HOME": "/tmp/cache"} | launch.env,  # noqa: S108 -- inside the container
        "working_dir": "/tmp",  # noqa: S108 -- inside the container
        "volumes": {
            str(mount.host): {"bind": mount.inside, "mode": "rw" if mount.writable else "ro"}
            for mount in launch.mounts
        },
        "user": user,
        "labels": labels,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "init": True,
        "detach": True,
    }
    made |= {} if launch.through_entrypoint else {"entrypoint": launch.argv[:1]}
    made |= (
        {"ports": {f"{launch.port[0]}/tcp": ("127.0.0.1", launch.port[1])}} if launch.port else {}
    )
    made |= (
        {"network": network}
        if network
        else {"network_mode": "bridge" if launch.network else "none"}
    )
    made |= {"mem_limit": int(launch.memory_gib * 2**30)} if launch.memory_gib else {}
    if launch.gpus:
        made |= {
            "shm_size": SHM_BYTES,
            "ulimits": [
                Ulimit(name="memlock", soft=-1, hard=-1),
                Ulimit(name="stack", soft=67108864, hard=67108864),
            ],
        }
    return made


def device_requests(gpus: tuple[str, ...]) -> dict[str, Any]:
    """Docker's way to ask for GPUs."""
    return {"device_requests": [DeviceRequest(device_ids=list(gpus), capabilities=[["gpu"]])]}


def cdi_devices(gpus: tuple[str, ...]) -> dict[str, Any]:
    """The Container Device Interface's way, which Podman knows; it ignores Docker's without a word."""
    return {"devices": [f"nvidia.com/gpu={gpu}" for gpu in gpus]}


@contextmanager
def networked(
    client: docker.DockerClient, name: str, labels: dict[str, str], launch: Launch
) -> Iterator[str | None]:
    """A network of the container's own that reaches nothing outside: its addresses are not masqueraded. None where no port is published."""
    if not launch.port:
        yield None
        return
    network = client.networks.create(
        name,
        driver="bridge",
        labels=labels,
        options={"com.docker.network.bridge.enable_ip_masquerade": "false"},
    )
    try:
        yield str(network.name)
    finally:
        with suppress(APIError):
            network.remove()


@contextmanager
def guarded(engine: Engine, name: str) -> Iterator[None]:
    """A process that outlives this one and removes the container then: its standard input is the lifeline."""
    guard = subprocess.Popen(
        [sys.executable, str(GUARD), engine.address, name, str(GRACE_S)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield
    finally:
        assert guard.stdin
        with suppress(BrokenPipeError):
            guard.stdin.write(b"done")
        guard.stdin.close()
        guard.wait(GRACE_S + 30)


@contextmanager
def following(container: Container, log_file: Path) -> Iterator[None]:
    """What the container says, in the log as it comes."""
    log_file.write_bytes(b"")

    def follow() -> None:
        with (
            log_file.open("wb", buffering=0) as sink,
            suppress(APIError, requests.RequestException, ValueError),
        ):
            for piece in container.logs(stream=True, follow=True):
                sink.write(piece)

    thread = threading.Thread(target=follow, name="container log", daemon=True)
    thread.start()
    try:
        yield
    finally:
        with suppress(NotFound):
            container.stop(timeout=GRACE_S)
        thread.join(5)


def remove(container: Container) -> None:
    with suppress(NotFound):
        try:
            container.remove(force=True, v=True)
        except APIError as error:  # somebody else is removing it
            if error.status_code != 409:
                raise


def sweep(client: docker.DockerClient) -> None:
    """Remove containers and networks whose job is gone; touches nothing that does not carry the mark of a dead job of this host."""
    mine = {"label": [LABEL, f"{HOST}={socket.gethostname()}"]}
    for container in client.containers.list(all=True, filters=mine, ignore_removed=True):
        if not alive(container.labels[LABEL]):
            log.warning("removing container %s, left by a job that is gone", container.name)
            remove(container)
    for network in client.networks.list(filters=mine):
        if not alive(network.attrs["Labels"][LABEL]):
            with suppress(APIError):
                network.remove()


def digest(engine: Engine, name: str, tag: str) -> str:
    """The digest that a registry gives to a tag now, or 'id:' and the id of an image that is only here; Failure `image_missing`, `no_engine`."""
    with connected(engine) as client:
        try:
            return str(client.images.get_registry_data(f"{name}:{tag}").id)
        except APIError as error:
            with suppress(ImageNotFound):
                return f"id:{client.images.get(f'{name}:{tag}').id}"
            raise absent(f"{name}:{tag}", error) from error


def absent(image: str, error: Exception) -> Failure:
    said = brief(error)
    denied = any(word in said for word in ("denied", "unauthorized", "authentication required"))
    remedy = (
        "Log in to its registry (docker login), and see that you may pull it."
        if denied
        else "Correct `image`, and see that its registry can be reached."
    )
    return Failure("image_missing", f"The image {image} cannot be had: {said}", remedy)


def prepare(engine: Engine, environment: Environment, _folder: Path) -> dict[str, Any]:
    """Pull the image, or build it from containers/; gives its facts: image (what to start), id, bytes, digests, versions."""
    assert environment.image
    with connected(engine) as client:
        image = (
            build(client, engine, environment)
            if environment.kind == "container"
            else pull(client, environment.image)
        )
    labels = image.labels or {}
    versions = {
        name: value
        for name, value in {
            "image": environment.image,
            "version": labels.get("org.opencontainers.image.version"),
        }.items()
        if value
    }
    return {
        "runtime": engine.name,
        "image": image.id,
        "digests": image.attrs.get("RepoDigests") or [],
        "bytes": image.attrs["Size"],
        "python": "python3",
        "packages": {},
        "versions": versions,
    }


def pull(client: docker.DockerClient, image: str) -> Any:
    """The image, fetched unless it is here, with progress in bytes."""
    with suppress(ImageNotFound):
        return client.images.get(image)
    layers: dict[str, tuple[int, int]] = {}
    place = Path(client.info()["DockerRootDir"])
    told = started = time.monotonic()
    try:
        for line in client.api.pull(image, stream=True, decode=True):
            if "error" in line:
                raise absent(image, RuntimeError(line["error"]))
            detail = line.get("progressDetail") or {}
            if line.get("status") == "Downloading" and detail.get("total"):
                layers[line["id"]] = (detail["current"], detail["total"])
                left = sum(total - came for came, total in layers.values())
                if place.is_dir() and left > shutil.disk_usage(place).free:
                    raise Failure(
                        "disk_full",
                        f"{image} needs {left / 1e9:.1f} GB more, packed, than {place} has free.",
                        "Free space there, or move the engine's data.",
                    )
            if time.monotonic() - told > PROGRESS_S:
                told = time.monotonic()
                came, total = (sum(layer[part] for layer in layers.values()) for part in (0, 1))
                log.info(
                    "%s: %.0f of %.0f MB of the layers begun, %.1f MB/s",
                    image,
                    came / 1e6,
                    total / 1e6,
                    came / 1e6 / (told - started),
                )
        return client.images.get(image)
    except (APIError, ImageNotFound) as error:
        raise absent(image, error) from error


def build(client: docker.DockerClient, engine: Engine, environment: Environment) -> Any:
    """An image from a folder of containers/, with the lock of its environment beside the Dockerfile as lock.txt.

    The engine's own client runs it, since it has secrets: the certificates of a private package index are not left in the image.
    """
    assert environment.image and environment.sources_sha256
    identity = json.dumps(
        [environment.lock_sha256, environment.sources_sha256, environment.build_args],
        sort_keys=True,
    )
    tag = f"showdown/{environment.image}:{hashlib.sha256(identity.encode()).hexdigest()[:20]}"
    with suppress(ImageNotFound):
        return client.images.get(tag)
    command = [engine.name, "build", "--progress", "plain", "--network", "host", "--tag", tag]
    for name, value in environment.build_args.items():
        command += ["--build-arg", f"{name}={value}"]
    certificates = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE")
    command += ["--secret", f"id=certificates,src={certificates}"] if certificates else []
    lines = []
    with tempfile.TemporaryDirectory() as context:
        shutil.copy(ROOT / "containers" / environment.image / "Dockerfile", context)
        if environment.lock:
            shutil.copy(ROOT / "envs" / f"{environment.lock}.txt", Path(context, "lock.txt"))
        surroundings = os.environ | {"DOCKER_BUILDKIT": "1", engine.variable: engine.address}
        with subprocess.Popen(
            [*command, context],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=surroundings,
        ) as process:
            assert process.stdout
            for line in process.stdout:
                lines.append(line)
                log.info("%s", line.rstrip()[:160])
    if process.returncode:
        said = lines[-1].strip() if lines else ""
        raise Failure(
            "image_missing",
            f"The image of containers/{environment.image} could not be built: {said}",
            "See the log of this stage.",
            "".join(lines[-25:]),
        )
    return client.images.get(tag)


def missing(engine: Engine, facts: dict[str, Any]) -> str | None:
    """Why the image is not there any more; None if it is, or if no engine can be asked."""
    try:
        with connected(engine) as client:
            client.images.get(facts["image"])
    except ImageNotFound:
        return f"the image {json.dumps(facts['versions'].get('image', facts['image']))} is gone from the {engine.name} engine"
    except Failure:
        return None
    return None
