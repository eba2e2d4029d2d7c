"""Real containers on a real Docker engine that the tests start themselves: whole runs, kills, refusals. Nothing is left."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import docker
import pytest
import yaml
from docker.errors import APIError

import backends
import engine
from conftest import EXPERIMENT, ROOT, Checkout
from pipeline.artifact import Manifest
from pipeline.failure import Failure
from pipeline.spec import Environment
from runtime import Launch, Mount, Server, check, container, load
from runtime.process import free_port

# The library leaves a socket open that could not connect.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
HTTP = ["python3", "-m", "http.server", "8000", "--bind", "0.0.0.0"]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    reason = engine.why_not()
    if reason:
        pytest.skip(reason)
    with engine.running() as made:
        engine.python_image(made)
        yield made


@pytest.fixture
def client(address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[docker.DockerClient]:
    monkeypatch.setenv("DOCKER_HOST", address)
    with closing(docker.DockerClient(base_url=address, version="1.41")) as made:
        yield made


def left(client: docker.DockerClient) -> list[str]:
    labelled = {"label": container.LABEL}
    return [one.name for one in client.containers.list(all=True, filters=labelled)] + [
        one.name for one in client.networks.list(filters=labelled)
    ]


def nothing_left(client: docker.DockerClient, within_s: float = 40) -> bool:
    deadline = time.monotonic() + within_s
    while left(client) and time.monotonic() < deadline:
        time.sleep(0.2)
    return not left(client)


def launch(folder: Path, argv: list[str], **changes: Any) -> Launch:
    return Launch(argv, {}, folder / "log", folder, image=engine.BASE, **changes)


def served(launched: Launch) -> Any:
    return load("docker").serve(launched)


def ended(server: Server, within_s: float = 20) -> int:
    deadline = time.monotonic() + within_s
    while (code := server.exit_code()) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert code is not None
    return code


def ask(port: int, path: str = "/") -> int:
    for _ in range(100):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as response:
                return int(response.status)
        except OSError:
            time.sleep(0.1)
    raise AssertionError("no answer")


def test_a_server_answers_on_loopback_alone_as_nobody_without_a_way_out(
    client: docker.DockerClient, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/weights").write_text("w")
    port = free_port()
    with served(
        launch(
            tmp_path,
            HTTP,
            port=(8000, port),
            mounts=(Mount(tmp_path / "model", "/model"),),
            label="a cell",
        )
    ) as server:
        assert ask(port) == 200
        assert len(server.tree()) >= 1
        check(server, "now")
        [running] = client.containers.list(filters={"label": container.LABEL})
        assert running.labels[container.CELL] == "a cell"
        assert running.ports == {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(port)}]}

        def inside(program: str) -> tuple[int, str]:
            code, said = running.exec_run(["python3", "-c", program])
            return code, said.decode()

        assert inside("import os; print(os.getuid())") == (0, "65534\n")
        assert "Read-only file system" in inside("open('/model/weights', 'w')")[1]
        assert inside("print(open('/model/weights').read())")[1] == "w\n"
        other = next(
            address[4][0]
            for address in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)
        )
        code, _ = inside("import socket; socket.create_connection(('192.0.2.1', 80), timeout=2)")
        assert code != 0, f"nothing outside is reached from {other}"
    assert left(client) == []
    assert "GET / HTTP" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("program", "options", "kind", "words"),
    [
        ("raise SystemExit('no such model')", {}, "server_died", "ended with exit code 1 now"),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
            {},
            "server_died",
            "ended by signal 11",
        ),
        (
            "x = bytearray(300 << 20); print(len(x))",
            {"memory_gib": 0.05},
            "out_of_memory",
            "memory ran out",
        ),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            {},
            "server_died",
            "ended by signal 9",
        ),
        (
            "raise SystemExit('CUDA error: CUDA driver version is insufficient for CUDA runtime version')",
            {},
            "driver_too_old",
            "its CUDA needs a newer driver",
        ),
    ],
)
def test_how_a_container_ended_is_told_apart(
    client: docker.DockerClient,
    tmp_path: Path,
    program: str,
    options: dict[str, Any],
    kind: str,
    words: str,
) -> None:
    with served(launch(tmp_path, ["python3", "-c", program], **options)) as server:
        ended(server)
        time.sleep(0.3)
        with pytest.raises(Failure, match=words) as caught:
            check(server, "now")
    assert caught.value.kind == kind
    assert left(client) == []


def test_a_server_that_ignores_the_signal_is_killed(
    client: docker.DockerClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container, "GRACE_S", 1)
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    with served(launch(tmp_path, ["python3", "-c", stubborn])):
        while "up" not in (tmp_path / "log").read_text():
            time.sleep(0.1)
        started = time.monotonic()
    assert time.monotonic() - started < 10
    assert left(client) == []


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ('could not select device driver "" with capabilities: [[gpu]]', "no_gpu"),
        (
            "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=13.0, please update your driver",
            "driver_too_old",
        ),
        (
            "driver failed programming external connectivity: Bind for 127.0.0.1:8000 failed: port is already allocated",
            "port_taken",
        ),
        ("OCI runtime create failed: no such file", "start_failed"),
    ],
)
def test_what_an_engine_refuses_is_told(tmp_path: Path, said: str, kind: str) -> None:
    assert (
        container.refused(
            APIError("500", explanation=said), launch(tmp_path, HTTP, port=(8000, 8000))
        ).kind
        == kind
    )


def test_a_container_sees_the_gpus_that_are_its_cells(
    client: docker.DockerClient, tmp_path: Path
) -> None:
    """By the engine's own handling of the request, behind a FAKE of NVIDIA's hook."""
    program = (
        "import os, time; print(os.environ['NVIDIA_VISIBLE_DEVICES'], flush=True); time.sleep(60)"
    )
    with served(launch(tmp_path, ["python3", "-c", program], gpus=("GPU-1", "GPU-3"))):
        deadline = time.monotonic() + 10
        while not (tmp_path / "log").read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
    assert (tmp_path / "log").read_text() == "GPU-1,GPU-3\n"


def test_a_missing_image_is_told(client: docker.DockerClient, tmp_path: Path) -> None:
    with (
        pytest.raises(Failure, match="There is no image showdown/none:1") as caught,
        served(dataclasses.replace(launch(tmp_path, HTTP), image="showdown/none:1")),
    ):
        pass
    assert caught.value.kind == "image_missing"
    assert left(client) == []


def test_no_engine_and_an_image_that_cannot_be_pulled_are_told(
    client: docker.DockerClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Failure, match=r"The image 127\.0\.0\.1:9/none:1 cannot be had") as caught:
        load("docker").prepare(
            Environment("x", "image", runtime="docker", image="127.0.0.1:9/none:1"), tmp_path
        )
    assert caught.value.kind == "image_missing"
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with (
        pytest.raises(
            Failure, match=r"No docker engine answers at unix://.*name its socket in DOCKER_HOST"
        ) as caught,
        served(launch(tmp_path, HTTP)),
    ):
        pass
    assert caught.value.kind == "no_engine"


def test_what_a_dead_job_left_is_swept_and_nothing_else(
    client: docker.DockerClient, tmp_path: Path
) -> None:
    host = {container.HOST: socket.gethostname()}
    client.containers.create(
        engine.BASE, ["sleep", "9"], name="dead", labels={container.LABEL: "1 12.5", **host}
    )
    client.containers.create(
        engine.BASE,
        ["sleep", "9"],
        name="elsewhere",
        labels={container.LABEL: "1 12.5", container.HOST: "another"},
    )
    client.containers.create(engine.BASE, ["sleep", "9"], name="foreign")
    try:
        with served(launch(tmp_path, ["sleep", "9"])):
            names = {one.name for one in client.containers.list(all=True)}
        assert "dead" not in names
        assert {"elsewhere", "foreign"} <= names
    finally:
        for name in ("elsewhere", "foreign"):
            client.containers.get(name).remove(force=True)


def snakemake(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    # Debian's client has BuildKit built in; others may lack it.
    surroundings = os.environ | {
        "PATH": f"/usr/bin:{os.environ['PATH']}",
        "SHOWDOWN_MACHINE_LOCK": str(folder / "machine.lock"),
    }
    command = [sys.executable, "-m", "snakemake", "--cores", "1", *arguments]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=surroundings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.fixture
def small(product: Path, smollm2: Manifest) -> Path:
    """An experiment with llama.cpp in a container that is built from containers/."""
    experiment = {
        "results": "results-docker",
        "models": yaml.safe_load((ROOT / "config.yaml").read_text())["models"],
        "backends": [
            {"name": "llamacpp", "runtime": "docker", "build_args": {"BASE": engine.BASE}}
        ],
        "concurrencies": [2],
        "trials": 1,
        "load": {"ramp_s": 1, "window_s": 8, "warmup_requests": 1},
        "calibration": {"streams": [2], "step_s": 0.5},
    }
    (product / "docker.yaml").write_text(yaml.safe_dump(experiment))
    return product


def test_llama_cpp_is_built_served_loaded_and_gone(
    client: docker.DockerClient, small: Path
) -> None:
    run = snakemake(small, "report", "--configfile", "docker.yaml")
    said = run.communicate(timeout=560)[0]

    assert run.returncode == 0, said[-5000:]
    with (small / "results-docker/summary.csv").open() as source:
        [row] = list(csv.DictReader(source))
    assert (row["backend"], row["outcome"], row["failed"], row["answers_broken"]) == (
        "llamacpp",
        "measured",
        "0",
        "False",
    ), row
    [cell] = [
        json.loads(path.read_text())
        for path in (small / "results-docker/measure").rglob("cell.json")
    ]
    assert cell["image"].startswith("sha256:")
    assert cell["realised"]["context_length"] > 0
    assert max(sample["server_rss_bytes"] for sample in cell["telemetry"]) > 50 << 20, (
        "the container's processes are watched"
    )
    assert left(client) == []
    again = snakemake(small, "report", "--configfile", "docker.yaml")
    assert "Nothing to be done" in again.communicate(timeout=60)[0]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_in_the_middle_no_container_is_left(
    client: docker.DockerClient, small: Path, number: int
) -> None:
    shutil.rmtree(small / "results-docker/measure", ignore_errors=True)
    run = snakemake(small, "report", "--configfile", "docker.yaml")
    deadline = time.monotonic() + 300
    while (
        not client.containers.list(filters={"label": container.LABEL})
        and time.monotonic() < deadline
        and run.poll() is None
    ):
        time.sleep(0.2)
    assert run.poll() is None, run.communicate()[0][-3000:]
    time.sleep(3)

    os.killpg(run.pid, number)
    run.communicate(timeout=60)

    assert nothing_left(client)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "snakemake",
            "--cores",
            "1",
            "--unlock",
            "--configfile",
            "docker.yaml",
        ],
        cwd=small,
        check=True,
        capture_output=True,
    )


WIRE = Path(__file__).parent.parent / "backends" / "wire"
STUB = Path(__file__).parent.parent / "backends" / "stub_server.py"
STUDIED = ("vllm", "lmdeploy", "sglang", "tgi", "tensorrt_llm", "mlc_llm")
# A FAKE of NVML's bindings, for the stubs alone: one GPU that is always idle.
FAKE_NVML = """
NVML_CLOCK_SM = 1
class NVMLError(Exception): pass
class Memory: total, used = 80 << 30, 1 << 30
class Rates: gpu = 0
def nvmlInit(): pass
def nvmlDeviceGetCount(): return 1
def nvmlDeviceGetHandleByIndex(number): return number
def nvmlDeviceGetUUID(handle): return "GPU-fake"
def nvmlDeviceGetName(handle): return "no GPU, a fake of the tests"
def nvmlDeviceGetMemoryInfo(handle): return Memory
def nvmlDeviceGetUtilizationRates(handle): return Rates
def nvmlDeviceGetPowerUsage(handle): return 0
def nvmlDeviceGetClockInfo(handle, kind): return 0
def nvmlDeviceGetCurrentClocksEventReasons(handle): return 0
def nvmlDeviceGetCudaComputeCapability(handle): return 9, 0
"""


def stub_image(client: docker.DockerClient, name: str, folder: Path) -> str:
    """An image, a STUB, that serves the backend's recorded stream at its readiness path when it is told to serve, and else does nothing."""
    place = folder / name
    place.mkdir(parents=True)
    (place / "stub_server.py").write_bytes(STUB.read_bytes())
    (place / "stream.sse").write_bytes((WIRE / f"{name}.sse").read_bytes())
    serving = "*serve*|*--model-id*"
    for program in ("python3", "trtllm-serve", "trtllm-build"):
        (place / program).write_text(
            f'#!/usr/bin/sh\ncase "$*" in {serving}) exec /usr/bin/python3 /stub/stub_server.py {backends.load(name).READY};; esac\n'
        )
        (place / program).chmod(0o755)
    (place / "Dockerfile").write_text(
        f'FROM {engine.BASE}\nCOPY . /stub/\nENV PATH=/stub:/usr/bin\nENTRYPOINT ["/stub/python3"]\n'
    )
    client.images.build(path=str(place), tag=f"stub/{name}:1", rm=True)
    return f"stub/{name}:1"


def test_each_backend_of_the_study_goes_through_the_pipeline_as_a_stub(
    client: docker.DockerClient, checkout: Checkout, tmp_path: Path
) -> None:
    """Builds, mounts, arguments, readiness, dialect and stream of all six, with images that are STUBS: nothing is measured of any backend."""
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake/pynvml.py").write_text(FAKE_NVML)
    served = [
        {
            "name": f"stub-{name}",
            "adapter": name,
            "runtime": "docker",
            "image": stub_image(client, name, tmp_path / "images"),
        }
        for name in STUDIED
    ]
    checkout.configure(
        backends=served,
        concurrencies=[2],
        server={**EXPERIMENT["server"], "device": "gpu", "start_timeout_s": 60},
        load={**EXPERIMENT["load"], "window_s": 2},
    )
    surroundings = checkout.environment | {"PYTHONPATH": str(tmp_path / "fake")}
    run = subprocess.run(
        checkout.command("report"),
        cwd=checkout.folder,
        env=surroundings,
        capture_output=True,
        text=True,
        timeout=500,
    )

    assert run.returncode == 0, (run.stdout + run.stderr)[-6000:]
    with (checkout.folder / "results/summary.csv").open() as source:
        rows = {row["backend"]: row for row in csv.DictReader(source)}
    assert {name: (row["outcome"], row["failed"], row["osl"]) for name, row in rows.items()} == {
        f"stub-{name}": ("measured", "0", "7.0" if name == "tgi" else "6.0") for name in STUDIED
    }
    lock = yaml.safe_load((checkout.folder / "config.lock.yaml").read_text())
    assert set(lock["image"]) == {f"stub/{name}@1" for name in STUDIED}
    cells = checkout.cells()
    assert all(cell["gpus"][0]["uuid"] == "GPU-fake" for cell in cells.values())
    assert "/model" in " ".join(cells["tiny/none/stub-vllm/t1/chat/c2"]["command"])
    [made] = (checkout.folder / "results/build/tiny/none/stub-mlc_llm").iterdir()
    built = json.loads(made.read_text())
    assert built["facts"]["engine"] == "."
    assert built["spec"]["gpu"] == {
        "name": "no GPU, a fake of the tests",
        "compute_capability": "9.0",
    }
    assert left(client) == []
