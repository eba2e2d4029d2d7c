"""What is settled before a server starts: its GPUs, what is mounted for it, its compile cache."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from docker.errors import ImageNotFound

import runtime
from config import experiment
from pipeline.artifact import Manifest
from pipeline.failure import Failure
from pipeline.spec import Cell
from runtime import Launch, Mount, apptainer, container
from runtime import server as servers
from test_experiment import DEFAULT

GPU = {
    "uuid": "GPU-1",
    "name": "NVIDIA A100 40GB",
    "memory_bytes": 40 * 10**9,
    "compute_capability": "8.0",
}


def cell(**server: Any) -> Cell:
    config = copy.deepcopy(DEFAULT) | {
        "backends": [{"name": "vllm", "runtime": "docker", "image": "v@sha256:" + "0" * 64}]
    }
    config["server"] |= {"device": "gpu"} | server
    return next(iter(experiment.load(config).cells()))


def engine(path: Path, *files: tuple[str, int]) -> Manifest:
    return Manifest(
        "build",
        "k",
        {},
        "",
        str(path),
        [{"path": name, "bytes": size, "sha256": ""} for name, size in files],
        {"hf": "."},
    )


def test_weights_that_cannot_fit_are_refused_with_the_numbers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(servers, "allocated", lambda count: [GPU] * count)
    large = engine(
        tmp_path,
        ("a.safetensors", 30 * 10**9),
        ("b.safetensors", 10 * 10**9),
        ("tokenizer.json", 10**12),
    )

    with pytest.raises(
        Failure,
        match=r"The weights take 40\.0 GB; 1 × NVIDIA A100 40GB at a share of 0\.9 give 36\.0 GB",
    ) as caught:
        servers.fitting(cell().served, large)
    assert caught.value.kind == "gpu_too_small"
    assert servers.fitting(cell(tensor_parallel=2).served, large) == [GPU, GPU]
    assert servers.fitting(cell(device="cpu").served, large) == []


def test_a_model_of_the_hubs_cache_is_mounted_with_the_bytes_its_links_name(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b/snapshots/c", tmp_path / "models--a--b/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "1").write_bytes(b"w")
    (snapshot / "model.safetensors").symlink_to("../../blobs/1")
    seen, mounts = runtime.placed(
        runtime.load("docker"), engine(snapshot, ("model.safetensors", 1)), "/model"
    )

    assert mounts == (Mount(tmp_path / "models--a--b", "/model"),)
    assert seen.path == "/model/snapshots/c"
    plain, mounts = runtime.placed(runtime.load("docker"), engine(blobs, ("1", 1)), "/model")
    assert (plain.path, mounts) == ("/model", (Mount(blobs, "/model"),))
    assert runtime.placed(runtime.load("process"), engine(blobs, ("1", 1)), "/model") == (
        engine(blobs, ("1", 1)),
        (),
    )


def test_a_compile_cache_is_cold_until_something_lies_in_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SHOWDOWN_STORE", str(tmp_path))
    env, mounts, start = servers.compile_cache(cell().served, "key")
    assert (env, start) == ({"VLLM_CACHE_ROOT": "/compiled"}, "cold")
    assert mounts == (Mount(tmp_path / "compiled/key", "/compiled", writable=True),)

    (tmp_path / "compiled/key/graph").write_text("g")
    assert servers.compile_cache(cell().served, "key")[2] == "warm"
    plain = dataclasses.replace(
        cell(), backend=dataclasses.replace(cell().backend, adapter="lmdeploy")
    )
    assert servers.compile_cache(plain, "key") == ({}, (), "none")


def test_apptainer_gets_mounts_gpus_and_an_environment_of_its_own(tmp_path: Path) -> None:
    """Wiring only: there is no Apptainer here."""
    launch = Launch(
        ["python3", "-m", "x"],
        {"A": "1"},
        tmp_path / "log",
        tmp_path,
        ("GPU-1",),
        "/store/image.sif",
        mounts=(Mount(tmp_path, "/model"), Mount(tmp_path, "/c", writable=True)),
    )
    argv = apptainer.command(launch)

    assert argv[:3] == ["apptainer", "exec", "--containall"]
    assert "--nv" in argv
    assert [argv[place + 1] for place, word in enumerate(argv) if word == "--bind"] == [
        f"{tmp_path}:/model:ro",
        f"{tmp_path}:/c:rw",
    ]
    assert {"A=1", "CUDA_VISIBLE_DEVICES=GPU-1"} <= {
        argv[place + 1] for place, word in enumerate(argv) if word == "--env"
    }
    assert argv[-4:] == ["/store/image.sif", "python3", "-m", "x"]
    assert apptainer.command(dataclasses.replace(launch, through_entrypoint=True))[1] == "run"


def test_a_pull_that_cannot_fit_ends_before_it_has_come(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The engine's own lines of progress, played by a FAKE of its client."""

    def absent(_: str) -> None:
        raise ImageNotFound("none")

    lines = [
        {"status": "Downloading", "id": "layer", "progressDetail": {"current": 1, "total": 10**12}}
    ]
    fake: Any = SimpleNamespace(
        images=SimpleNamespace(get=absent),
        api=SimpleNamespace(pull=lambda *_, **__: iter(lines)),
        info=lambda: {"DockerRootDir": str(tmp_path)},
    )

    with pytest.raises(Failure, match=r"big:1 needs 1000\.0 GB more, packed") as caught:
        container.pull(fake, "big:1")
    assert caught.value.kind == "disk_full"


def test_podman_is_asked_for_gpus_as_cdi_devices() -> None:
    assert runtime.load("podman").ENGINE.gpus(("GPU-1", "GPU-2")) == {
        "devices": ["nvidia.com/gpu=GPU-1", "nvidia.com/gpu=GPU-2"]
    }  # type: ignore[attr-defined]
    [request] = container.device_requests(("GPU-1",))["device_requests"]
    assert (request["DeviceIDs"], request["Capabilities"]) == (["GPU-1"], [["gpu"]])
