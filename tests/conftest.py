"""What several tests share: a tiny model, a checkout with the paced backend in it, a paced server."""

from __future__ import annotations

import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

import calibrate
import download
import environment
from config import experiment
from config.plan import Plan
from host.machine import describe_host
from pipeline import store
from pipeline.artifact import Manifest

ROOT = Path(__file__).parent.parent
PACED = Path(__file__).parent / "paced"
COPIED = (
    "Snakefile",
    "config.yaml",
    "rules",
    "scripts",
    "report",
    "profiles",
    "prompts",
    "envs",
    "experiments",
    "containers",
)

EXPERIMENT: dict[str, Any] = {
    "models": [{"name": "tiny", "source": "folder", "path": "tiny-model"}],
    "quantizations": [{"name": "none", "method": "none"}],
    "backends": [{"name": "paced"}],
    "workloads": [
        {
            "name": "chat",
            "prompts": {"source": "file", "path": "prompts/showdown.jsonl"},
            "max_tokens": 8,
        }
    ],
    "concurrencies": [1, 2],
    "load": {
        "warmup_requests": 1,
        "ramp_s": 0.2,
        "window_s": 1.0,
        "settle_s": 0.1,
        "request_timeout_s": 5,
    },
    "server": {"context_length": 128, "max_sequences": 4, "start_timeout_s": 10, "port": None},
    "trials": 1,
    "calibration": {"streams": [2], "step_s": 0.3},
    "slo": {},
    "extra_index_url": None,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that several workers end together."""
    longest = ("test_edits_and_kills.py", "test_sessions.py", "test_reruns.py", "test_failures.py")
    items.sort(key=lambda item: item.path.name not in longest)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """One token a word; every word but 'word' is unknown, and still one token."""
    made = Tokenizer(models.WordLevel({"word": 0, "[UNK]": 1}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """A Hugging Face folder in form: config, tokenizer, one small tensor."""
    folder = tmp_path_factory.mktemp("models") / "tiny-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "tiny"}))
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file({"weight": np.zeros((2, 2), dtype=np.float32)}, folder / "model.safetensors")
    return folder


def default_plan(**changes: Any) -> Plan:
    """The jobs of the default experiment, with these top-level keys changed."""
    config = yaml.safe_load((ROOT / "config.yaml").read_text()) | changes
    return Plan(experiment.load(config), ROOT / "scripts")


@functools.cache
def calibration() -> tuple[str, str]:
    """File name and content of the client's calibration on this machine, made once for all checkouts: it takes seconds."""
    key = default_plan(calibration=EXPERIMENT["calibration"]).calibrate().key
    content = {
        "key": key,
        "spec": {},
        "host": describe_host(),
        "seconds": 0,
        **calibrate.calibrate([2], 0.3),
    }
    return f"{key}.json", json.dumps(content)


def until(condition: Callable[[], Any], within_s: float = 120) -> Any:
    """Wait for an event; gives what the condition gave. Fails where it does not come in a time that no machine needs."""
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "the awaited event did not come"
        time.sleep(0.05)
    return found


def copy_product(folder: Path) -> None:
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, folder / name)


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The product as it is, in a folder of its own."""
    folder = tmp_path_factory.mktemp("product")
    copy_product(folder)
    return folder


class Checkout:
    """A copy of the product with the paced backend added: one file, one server program, one configuration entry.

    The client is calibrated already.
    """

    def __init__(self, folder: Path, tiny_model: Path):
        self.folder, self.store = folder, folder / "store"
        copy_product(folder)
        shutil.copytree(tiny_model, folder / "tiny-model")
        shutil.copy(PACED / "paced.py", folder / "scripts/backends/paced.py")
        shutil.copy(PACED / "paced_server.py", folder / "scripts/foreign/paced_server.py")
        name, content = calibration()
        (folder / "results/calibrate/client").mkdir(parents=True)
        (folder / "results/calibrate/client" / name).write_text(content)
        self.configure()

    def configure(self, **changes: Any) -> None:
        """Write config.yaml: the tests' experiment with these top-level keys changed."""
        (self.folder / "config.yaml").write_text(
            yaml.safe_dump(EXPERIMENT | changes, sort_keys=False)
        )

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "snakemake", "--cores", "1", *arguments]

    @property
    def environment(self) -> dict[str, str]:
        lock = str(
            self.folder / "machine.lock"
        )  # other tests measure on this machine at the same time
        return os.environ | {
            "SHOWDOWN_STORE": str(self.store),
            "SHOWDOWN_MACHINE_LOCK": lock,
            "PYTHONDONTWRITEBYTECODE": "",
        }

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Snakemake in a process group of its own, to be killed; what it says goes to run.log."""
        with (self.folder / "run.log").open("ab") as sink:
            return subprocess.Popen(
                self.command(*arguments),
                cwd=self.folder,
                env=self.environment,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )

    def snakemake(self, *arguments: str, fails: bool = False) -> str:
        """Run snakemake in the checkout and give all it printed."""
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        said = done.stdout + done.stderr
        assert (done.returncode != 0) == fails, said
        return said

    def planned(self, *arguments: str) -> dict[str, int]:
        """Jobs that a run would do now: rule -> count."""
        said = self.snakemake("--dry-run", *arguments)
        lines = said.splitlines()
        if "Job stats:" not in lines:
            assert "Nothing to be done" in said
            return {}
        found = {}
        for line in lines[lines.index("Job stats:") + 3 :]:
            name, _, count = line.partition(" ")
            if name in ("", "total"):
                break
            found[name] = int(count)
        found.pop("all")
        return found

    def cells(self) -> dict[str, dict[str, Any]]:
        """Every cell.json by the cell's path."""
        base = self.folder / "results/measure"
        return {
            str(path.parent.relative_to(base)): json.loads(path.read_text())
            for path in sorted(base.rglob("cell.json"))
        }


@pytest.fixture
def checkout(tmp_path: Path, tiny_model: Path) -> Checkout:
    folder = tmp_path / "check out"
    folder.mkdir()
    return Checkout(folder, tiny_model)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Checkout:
    """A checkout with a whole run behind it."""
    folder = tmp_path_factory.mktemp("finished") / "checkout"
    folder.mkdir()
    made = Checkout(folder, tiny_model)
    made.snakemake()
    return made


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    def free() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return free


@pytest.fixture(scope="session")
def paced_server(free_port: Callable[[], int]) -> Callable[..., AbstractContextManager[str]]:
    """Start the paced server in a process of its own; gives its URL."""

    @contextmanager
    def start(*arguments: str) -> Iterator[str]:
        port = free_port()
        process = subprocess.Popen(
            [sys.executable, str(PACED / "paced_server.py"), "--port", str(port), *arguments],
            stdout=subprocess.DEVNULL,
        )
        try:
            for _ in range(100):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                    break
                except OSError:
                    time.sleep(0.05)
            yield f"http://127.0.0.1:{port}/v1/chat/completions"
        finally:
            process.kill()
            process.wait()

    return start


@pytest.fixture(scope="session")
def plan() -> Plan:
    """The jobs of the default experiment."""
    return default_plan()


@pytest.fixture(scope="session")
def converter(plan: Plan) -> str:
    """Interpreter of the environment that converts checkpoints, from the user's own store: installed once."""
    job, lock, url = (
        plan.environment(experiment.CONVERTER),
        environment.LOCKS / f"{experiment.CONVERTER}.txt",
        plan.experiment.config["extra_index_url"],
    )
    return str(
        store.obtain(
            store.root(),
            "environment",
            json.loads(job.spec),
            job.code,
            lambda folder: environment.install(lock, url, folder),
            hashed=False,
        ).facts["python"]
    )


@pytest.fixture(scope="session")
def smollm2(plan: Plan, converter: str) -> Manifest:
    """The default experiment's model, from the user's own store."""
    [name] = plan.experiment.models
    job = plan.download(name)
    return store.obtain(
        store.root(),
        "download",
        json.loads(job.spec),
        job.code,
        lambda folder: download.fetch(plan.experiment.models[name].weights, converter, folder),
    )
