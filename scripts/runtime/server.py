"""A server for one model, quantization and backend: what it is told, its start, its readiness, its end."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import aiohttp
import psutil

import backends
import runtime
from foreign import PROGRAMS
from host.gpus import allocated
from pipeline import store
from pipeline.artifact import Manifest
from pipeline.failure import Failure
from pipeline.spec import Served, to_json
from runtime import Launch, Mount, Server, process

log = logging.getLogger(__name__)
POLL_S = 0.1
# Where a server in a container finds what it needs, and where it listens.
MODEL_AT, PROGRAMS_AT, CACHE_AT, INNER_PORT = "/model", "/programs", "/compiled", 8000


@dataclass(frozen=True)
class Prepared:
    """What a server is started from, and `facts` of it for the record: command, threads, compile_cache, gpus, image."""

    served: Served
    settings: backends.Serve
    launch: Launch
    port: int
    gpus: list[dict[str, Any]]
    facts: dict[str, Any]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def prepare(
    served: Served,
    engine: Manifest,
    environment: Manifest,
    engine_key: str,
    log_file: Path,
    label: str,
) -> Prepared:
    """All that can be known before the start; Failure where the server cannot run here. The launch has no working folder yet."""
    gpus = fitting(served, engine)
    settings, port, mounts = serving(served, engine, environment)
    command = backends.load(served.backend.adapter).command(settings)
    spec = json.loads(to_json({"backend": served.backend, "server": served.server}))
    cache_env, cache_mount, start = compile_cache(
        served, store.key(spec | {"engine": engine_key, "gpus": [gpu["name"] for gpu in gpus]}, "")
    )
    launch = Launch(
        command.argv,
        command.env | cache_env | served.backend.env,
        log_file,
        Path(served.backend.workdir or ""),
        gpus=tuple(gpu["uuid"] for gpu in gpus),
        image=environment.facts.get("image", ""),
        through_entrypoint=command.through_entrypoint,
        mounts=mounts + cache_mount,
        port=(settings.port, port),
        memory_gib=served.server.memory_gib,
        user=served.backend.user,
        label=label,
    )
    facts = {
        "command": [part.replace(str(Path.home()), "~") for part in command.argv],
        "threads": settings.threads,
        "compile_cache": start,
        "gpus": gpus,
        "image": environment.facts.get("digests") or environment.facts.get("image"),
    }
    return Prepared(served, settings, launch, port, gpus, facts)


@contextmanager
def started(prepared: Prepared) -> Iterator[Server]:
    """The server, running; stopped when the block is left."""
    with tempfile.TemporaryDirectory() as scratch:
        launch = (
            prepared.launch
            if prepared.served.backend.workdir
            else dataclasses.replace(prepared.launch, workdir=Path(scratch))
        )
        with runtime.load(prepared.served.backend.runtime).serve(launch) as server:
            yield server


def serving(
    served: Served, engine: Manifest, environment: Manifest
) -> tuple[backends.Serve, int, tuple[Mount, ...]]:
    """The neutral settings of the server as it sees them, its port on this machine, and what is mounted for it."""
    port = process.claim_port(served.server.port) if served.server.port else process.free_port()
    adapter, runs = backends.load(served.backend.adapter), runtime.load(served.backend.runtime)
    seen, mounts = runtime.placed(runs, engine, MODEL_AT)
    inside: dict[str, Any] = {"programs": Path(PROGRAMS_AT)} if runs.CONTAINED else {}
    if runs.CONTAINED:
        mounts += (Mount(PROGRAMS, PROGRAMS_AT),)
    if runs.OWN_NETWORK:
        inside |= {"host": "0.0.0.0", "port": INNER_PORT}  # noqa: S104 -- of the container's own network
    serve = backends.Serve(
        engine=seen,
        python=environment.facts["python"],
        served_name=served.model.name,
        context_length=served.server.context_length,
        max_sequences=served.server.max_sequences,
        threads=served.server.threads or max(1, (psutil.cpu_count() or 2) - 1),
        seed=served.seed,
        options=adapter.Options(**served.backend.options),
        args=served.backend.args,
        equal=served.server.policy == "equal",
        device=served.server.device,
        dtype=served.server.dtype,
        tensor_parallel=served.server.tensor_parallel,
        gpu_memory_share=served.server.gpu_memory_share,
        prefix_caching=served.server.prefix_caching,
        trust_remote_code=served.model.weights.trust_remote_code,
        **({"port": port} | inside),
    )
    return serve, port, mounts


def fitting(served: Served, engine: Manifest) -> list[dict[str, Any]]:
    """The GPUs for it, large enough for its weights; none on a CPU. Failure `no_gpu`, `gpu_too_small`."""
    if served.server.device == "cpu":
        return []
    gpus = allocated(served.server.tensor_parallel)
    room = sum(gpu["memory_bytes"] for gpu in gpus) * served.server.gpu_memory_share
    weights = sum(
        entry["bytes"] for entry in engine.files if not entry["path"].endswith((".json", ".txt"))
    )
    if weights > room:
        raise Failure(
            "gpu_too_small",
            f"The weights take {weights / 1e9:.1f} GB; {len(gpus)} × {gpus[0]['name']} at a share of {served.server.gpu_memory_share:g} give {room / 1e9:.1f} GB, keys and values not counted.",
            "Use a quantized or smaller model, or raise server.tensor_parallel.",
        )
    return gpus


def compile_cache(served: Served, key: str) -> tuple[dict[str, str], tuple[Mount, ...], str]:
    """The folder in the store that a backend keeps what it compiles in: the variable that names it, its mount, and whether the start is cold, warm, or none where there is no such cache."""
    adapter, runs = backends.load(served.backend.adapter), runtime.load(served.backend.runtime)
    if adapter.CACHE is None:
        return {}, (), "none"
    folder = store.root() / "compiled" / key
    folder.mkdir(parents=True, exist_ok=True)
    warm = "warm" if any(path.is_file() for path in folder.rglob("*")) else "cold"
    return (
        {adapter.CACHE: CACHE_AT if runs.CONTAINED else str(folder)},
        (Mount(folder, CACHE_AT, writable=True),),
        warm,
    )


async def keep(url: str, target: Path) -> None:
    """What the server's own metrics say at the end of a load; it is asked once, so as not to disturb it."""
    timeout = aiohttp.ClientTimeout(total=10)
    try:
        async with (
            aiohttp.ClientSession(trust_env=False, timeout=timeout) as session,
            session.get(url) as response,
        ):
            target.write_bytes(await response.read())
    except (aiohttp.ClientError, TimeoutError) as error:
        log.info("%s: %s", url, error)


async def reset_cache(url: str) -> bool:
    """Ask the server to forget its prefix cache; whether it says that it has."""
    timeout = aiohttp.ClientTimeout(total=30)
    try:
        async with (
            aiohttp.ClientSession(trust_env=False, timeout=timeout) as session,
            session.post(url) as response,
        ):
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError) as error:
        log.warning("%s: the prefix cache was not reset: %s", url, error)
        return False


async def told(url: str, paths: tuple[str, ...]) -> dict[str, Any]:
    """What the server answers on its INFO paths, as far as it answers in JSON."""
    found = {}
    async with aiohttp.ClientSession(
        trust_env=False, timeout=aiohttp.ClientTimeout(total=10)
    ) as session:
        for path in paths:
            try:
                async with session.get(url + path) as response:
                    found[path] = await response.json(content_type=None)
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                log.info("%s: %s", path, error)
    return {path: answer for path, answer in found.items() if isinstance(answer, dict)}


async def until_ready(server: Server, url: str, timeout_s: float) -> float:
    """Seconds from start to the first 200 of the readiness path; Failure `start_timeout`, `server_died` or `out_of_memory`."""
    timeout = aiohttp.ClientTimeout(total=5)
    async with aiohttp.ClientSession(
        trust_env=False, timeout=timeout, connector=aiohttp.TCPConnector(force_close=True)
    ) as session:
        while True:
            runtime.check(server, "before it was ready")
            passed = (perf_counter_ns() - server.started_ns) / 1e9
            if passed > timeout_s:
                raise Failure(
                    "start_timeout",
                    f"The server was not ready {timeout_s:g} s after its start.",
                    "Read its last words below; raise server.start_timeout_s if it only needs longer.",
                    runtime.tail(server.log_file),
                )
            try:
                async with session.get(url) as response:
                    if response.status == 200:
                        return passed
            except (aiohttp.ClientError, TimeoutError, OSError):
                pass
            await asyncio.sleep(POLL_S)


def versions(environment: Manifest, adapter: str) -> dict[str, str]:
    """Versions that tell what was measured: those the environment was made for, else the backend's own package and torch."""
    known: dict[str, str] = environment.facts["versions"]
    packages = environment.facts["packages"]
    return known or {
        name: packages[name]
        for name in (adapter, adapter.replace("_", "-"), "torch")
        if name in packages
    }
