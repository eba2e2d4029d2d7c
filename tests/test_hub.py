"""The real huggingface_hub against a stand-in for the Hub (hub_server.py): what is fetched, and what is said when it fails."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.numpy import save

import hub_server
import stages
from conftest import ROOT
from hub_server import Hub
from models.hub import model_files
from pipeline import store
from pipeline.artifact import Manifest
from pipeline.failure import Failure

REPO = "owner/tiny"
SMALL, LARGE = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
CONFIGURATION = {
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
}
NEEDED = CONFIGURATION | {SMALL, LARGE, "model.safetensors.index.json"}
TOKEN = Hub().token


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_server.serving() as made:
        yield made


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> dict[str, bytes]:
    """A repository as they are: weights in three formats, one of them in two parts with an index, and what nobody needs.
    The library writes 10 MiB at a time; the larger part has three of them."""
    parts = {
        name: save({f"w{number}": np.full((1_000_000 * number**3,), number, np.float32)})
        for number, name in enumerate((SMALL, LARGE), 1)
    }
    index = {"weight_map": {f"w{number}": name for number, name in enumerate(parts, 1)}}
    return {
        "config.json": b'{"model_type": "tiny"}',
        "tokenizer.json": (tiny_model / "tokenizer.json").read_bytes(),
        "tokenizer_config.json": b"{}",
        "chat_template.jinja": b"{{ messages }}",
        "generation_config.json": b"{ }",
        **parts,
        "model.safetensors.index.json": json.dumps(index).encode(),
        "consolidated.safetensors": b"x" * 9000,
        "model.fp16.safetensors": b"x" * 9000,
        "pytorch_model.bin": b"x" * 9000,
        "original/consolidated.00.pth": b"x" * 9000,
        "onnx/model.onnx": b"x" * 9000,
        "modeling_tiny.py": b"raise SystemExit",
        "README.md": b"read me",
    }


@dataclass
class User:
    """Somebody with a cache, a store and surroundings of their own, who runs stages by hand."""

    home: Path
    endpoint: str
    more: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        mine = {
            "HF_HOME": str(self.home / "hf"),
            "SHOWDOWN_STORE": str(self.home / "store"),
            "HF_ENDPOINT": self.endpoint,
        }
        return (
            {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
            | mine
            | self.more
        )

    def command(self, script: str, spec: dict[str, Any], **inputs: Path) -> list[str]:
        options = stages.arguments(self.home, Path(script).stem, spec, **inputs)
        return [sys.executable, str(ROOT / "scripts" / script), *options]

    def run(self, script: str, spec: dict[str, Any], **inputs: Path) -> dict[str, Any]:
        """Run one stage; gives its manifest, with what it printed as 'said'."""
        done = subprocess.run(
            self.command(script, spec, **inputs),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return json.loads((self.home / f"{Path(script).stem}.json").read_text()) | {
            "said": done.stderr
        }

    def download(self, commit: str, **weights: Any) -> dict[str, Any]:
        return self.run("download.py", spec(commit, **weights))


def spec(commit: str, **weights: Any) -> dict[str, Any]:
    return {
        "weights": {"source": "hub", "repo_id": REPO, "revision": commit, **weights},
        "converter": None,
    }


@pytest.fixture
def user(tmp_path: Path, hub: Hub) -> User:
    return User(tmp_path, hub.url)


def fetched(hub: Hub) -> set[str]:
    """Names of the files whose bytes were asked for."""
    return {
        path.rsplit("/", 1)[1]
        for method, path, _ in hub.requests
        if method == "GET" and ("/resolve/" in path or "/cdn/" in path)
    }


def refused(made: dict[str, Any], kind: str = "download_failed") -> str:
    assert made["failure"] is not None
    assert made["failure"]["kind"] == kind
    assert "Traceback" not in made["said"]
    return f"{made['failure']['reason']} {made['failure']['remedy']}"


def test_what_serving_needs_is_fetched_and_nothing_else(
    hub: Hub, user: User, model: dict[str, bytes]
) -> None:
    commit = hub.add(REPO, model)
    made = user.download(commit)

    assert made["failure"] is None
    assert {file["path"] for file in made["files"]} == NEEDED
    assert all(Path(made["path"], name).read_bytes() == model[name] for name in NEEDED)
    assert made["facts"]["origin"] == f"hub {REPO} at {commit}"
    assert fetched(hub) == NEEDED
    assert re.search(r"36\.0 of 36\.0 MB, [\d.]+ MB/s", made["said"]), made["said"]


def test_what_is_cached_costs_no_request_online_or_offline(
    hub: Hub, user: User, model: dict[str, bytes], tmp_path: Path
) -> None:
    commit = hub.add(REPO, model)
    user.download(commit)
    for surroundings in ({}, {"HF_HUB_OFFLINE": "1"}):
        hub.requests.clear()
        user.more = {**surroundings, "SHOWDOWN_STORE": str(tmp_path / f"store-{len(surroundings)}")}

        assert user.download(commit)["failure"] is None
        assert hub.requests == []


@pytest.mark.slow
def test_offline_without_the_bytes_says_so(hub: Hub, user: User, model: dict[str, bytes]) -> None:
    user.more = {"HF_HUB_OFFLINE": "1"}

    assert "HF_HUB_OFFLINE forbids to fetch it. Run once with a network" in refused(
        user.download(hub.add(REPO, model))
    )
    assert hub.requests == []


def test_a_file_cut_off_on_the_way_is_gone_on_with(
    hub: Hub, user: User, model: dict[str, bytes]
) -> None:
    hub.faults = {LARGE: ["cut 25000000"], SMALL: ["cut 5"]}

    assert user.download(hub.add(REPO, model))["failure"] is None
    assert [
        headers["Range"] for method, path, headers in hub.asked(LARGE) if "Range" in headers
    ] == [f"bytes={20 << 20}-"]


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGKILL,
        *(
            pytest.param(number, marks=pytest.mark.slow)
            for number in (signal.SIGTERM, signal.SIGINT)
        ),
    ],
)
def test_a_killed_transfer_is_gone_on_with(
    hub: Hub, user: User, model: dict[str, bytes], number: int
) -> None:
    commit = hub.add(REPO, model)
    hub.faults = {LARGE: ["slow 20000000"]}
    run = subprocess.Popen(
        user.command("download.py", spec(commit)), env=user.environment, stderr=subprocess.DEVNULL
    )
    blobs = user.home / "hf/hub/models--owner--tiny/blobs"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not any(
        part.stat().st_size >= 10 << 20 for part in blobs.glob("*.incomplete")
    ):
        time.sleep(0.02)
    started = time.monotonic()
    run.send_signal(number)
    assert run.wait(10) != 0
    assert time.monotonic() - started < 2, "it does not wait for what is under way"
    hub.requests.clear()

    made = user.download(commit)

    assert made["failure"] is None
    [resumed] = [
        headers["Range"]
        for _, path, headers in hub.asked(f"cdn/owner--tiny/{commit}/{LARGE}")
        if "Range" in headers
    ]
    assert int(resumed.removeprefix("bytes=").removesuffix("-")) >= 10 << 20
    assert "going on with" in made["said"]
    assert not list(blobs.glob("*.incomplete"))


def test_a_wrong_byte_is_found_and_the_file_fetched_again(
    hub: Hub, user: User, model: dict[str, bytes]
) -> None:
    hub.faults = {LARGE: ["wrong"], "config.json": ["wrong"]}
    made = user.download(hub.add(REPO, model))

    assert made["failure"] is None
    assert (
        "fetching again config.json, model-00002-of-00002.safetensors: other bytes than the hub's"
        in made["said"]
    )
    assert all(Path(made["path"], name).read_bytes() == model[name] for name in NEEDED)


@pytest.mark.slow
def test_bytes_that_stay_wrong_are_refused(hub: Hub, user: User, model: dict[str, bytes]) -> None:
    hub.faults = {LARGE: ["wrong"] * 2}

    assert f"{LARGE} came twice with other bytes than the hub says" in refused(
        user.download(hub.add(REPO, model))
    )


@pytest.mark.slow
def test_an_lfs_pointer_in_place_of_the_weights_is_refused(
    hub: Hub, user: User, model: dict[str, bytes]
) -> None:
    hub.faults = {LARGE: ["pointer"] * 9}

    assert "file should be of size 320000" in refused(user.download(hub.add(REPO, model)))


@pytest.mark.slow
def test_bytes_that_changed_in_the_cache_are_fetched_again(
    hub: Hub, user: User, model: dict[str, bytes], tmp_path: Path
) -> None:
    commit = hub.add(REPO, model)
    blob = Path(user.download(commit)["path"], SMALL).resolve()
    blob.write_bytes(b"\0" + blob.read_bytes()[1:])
    user.more = {"SHOWDOWN_STORE": str(tmp_path / "another")}

    made = user.download(commit)

    assert Path(made["path"], SMALL).read_bytes() == model[SMALL]


@pytest.mark.parametrize(
    ("access", "token", "words"),
    [
        (
            "gated",
            "",
            "owner/tiny at {commit}: access is gated. Ask for access at {url}/owner/tiny, then set HF_TOKEN",
        ),
        pytest.param(
            "gated",
            "no-access",
            "access is gated. Ask for access at {url}/owner/tiny",
            marks=pytest.mark.slow,
        ),
        (
            "private",
            "",
            "there is no such repository, or it is private. Correct `repo_id`; if it is private, ask for access at {url}/owner/tiny",
        ),
        (
            "open",
            "hf_expired",
            "the hub refuses access (401). Ask for access at {url}/owner/tiny, and see that HF_TOKEN",
        ),
    ],
)
def test_a_refusal_names_the_repository_and_where_to_ask(
    hub: Hub, user: User, model: dict[str, bytes], access: str, token: str, words: str
) -> None:
    commit = hub.add(REPO, model, access=access)
    user.more = {"HF_TOKEN": token} if token else {}

    assert words.format(commit=commit, url=hub.url) in refused(user.download(commit))


@pytest.mark.parametrize("login", ["HF_TOKEN", pytest.param("the login", marks=pytest.mark.slow)])
def test_a_token_opens_a_gated_repository_and_is_written_nowhere(
    hub: Hub, user: User, model: dict[str, bytes], login: str
) -> None:
    commit = hub.add(REPO, model, access="gated")
    if login == "HF_TOKEN":
        user.more = {"HF_TOKEN": TOKEN}
    else:
        (user.home / "hf").mkdir()
        (user.home / "hf/token").write_text(TOKEN)

    made = user.download(commit)

    assert made["failure"] is None
    assert not [headers for _, path, headers in hub.asked("/cdn/") if TOKEN in str(headers)], (
        "the token stays with the hub"
    )
    assert TOKEN not in made["said"]
    assert [
        path
        for path in user.home.rglob("*")
        if path.is_file() and TOKEN.encode() in path.read_bytes()
    ] == ([] if login == "HF_TOKEN" else [user.home / "hf/token"])


@pytest.mark.slow
def test_a_commit_or_repository_that_is_not_there_is_named(
    hub: Hub, user: User, model: dict[str, bytes]
) -> None:
    hub.add(REPO, model)

    assert (
        f"owner/tiny at {'0' * 40}: there is no such revision. Look at {hub.url}/owner/tiny/commits/main"
        in refused(user.download("0" * 40))
    )
    assert "owner/none at 0000" in refused(user.download("0" * 40, repo_id="owner/none"))


@pytest.mark.slow  # the library tries again for a while
@pytest.mark.parametrize(
    ("status", "words"),
    [
        (429, "the hub asks to slow down (429). Try again later"),
        (503, "the hub is in trouble (503). Try again later"),
    ],
)
def test_a_hub_in_trouble_is_told_as_such(
    hub: Hub, user: User, model: dict[str, bytes], status: int, words: str
) -> None:
    commit = hub.add(REPO, model)
    user.more = {"HF_HUB_ETAG_TIMEOUT": "1"}
    hub.status = status

    assert words in refused(user.download(commit))


@pytest.mark.slow
def test_a_server_error_in_the_middle_loses_nothing(
    hub: Hub, user: User, model: dict[str, bytes]
) -> None:
    commit = hub.add(REPO, model)
    hub.faults = {LARGE: ["500"] * 9}
    assert "the hub is in trouble (500)" in refused(user.download(commit))
    hub.faults, hub.requests[:] = {}, []

    assert user.download(commit)["failure"] is None
    assert fetched(hub) == {LARGE}


@pytest.mark.slow  # the library tries again for a while
def test_an_unreachable_hub_is_told_as_such(user: User) -> None:
    user.endpoint = "http://127.0.0.1:9"

    assert "See that the network is up, or set HF_ENDPOINT to a mirror" in refused(
        user.download("0" * 40)
    )


@pytest.mark.slow  # the library tries again for a while
def test_a_proxy_is_used(hub: Hub, user: User, model: dict[str, bytes]) -> None:
    commit = hub.add(REPO, model)
    user.more = {"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "", "no_proxy": ""}

    assert f"owner/tiny at {commit}: " in refused(user.download(commit))
    assert hub.requests == []


def test_a_disk_too_small_is_refused_before_the_first_byte(
    hub: Hub, user: User, model: dict[str, bytes]
) -> None:
    commit = hub.add(REPO, model)
    program = "import shutil, sys, types\nshutil.disk_usage = lambda _: types.SimpleNamespace(free=10**6)\nimport download\ndownload.main()"
    command = [sys.executable, "-c", program, *user.command("download.py", spec(commit))[2:]]
    done = subprocess.run(
        command,
        env=user.environment | {"PYTHONPATH": str(ROOT / "scripts")},
        capture_output=True,
        text=True,
    )
    made = json.loads((user.home / "download.json").read_text()) | {"said": done.stderr}

    words = refused(made, "disk_full")
    assert "needs 0.04 GB" in words
    assert "has 0.00 GB free" in words
    assert fetched(hub) == set()


@pytest.mark.parametrize(
    ("names", "options", "words"),
    [
        (
            ["config.json", "pytorch_model.bin"],
            {},
            r"no safetensors; it has pytorch_model.bin. Pickled weights run code .* name them in `pickle_weights`",
        ),
        (["README.md"], {}, "no weights at all"),
        (
            ["model.safetensors"],
            {"pickled": ["x.bin"]},
            r"no file x.bin. It has: model.safetensors",
        ),
        (["model.safetensors"], {"gguf": "m.gguf"}, "no file m.gguf"),
    ],
)
def test_weights_that_are_not_there_or_not_safe_are_refused(
    names: list[str], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(Failure, match=words):
        model_files(names, **({"gguf": None, "pickled": [], "remote_code": False} | options))


def test_pickled_weights_that_are_named_and_code_that_is_trusted_are_taken(
    model: dict[str, bytes],
) -> None:
    assert set(model_files(list(model), None, ["pytorch_model.bin"], False)) == CONFIGURATION | {
        "pytorch_model.bin",
        "model.safetensors.index.json",
    }
    assert set(model_files(list(model), None, [], True)) == NEEDED | {"modeling_tiny.py"}


DOLLY = "datasets/databricks/databricks-dolly-15k"
ROWS = [
    {
        "instruction": "word " * number,
        "context": "word " * (number % 3),
        "response": "x",
        "category": "open_qa",
    }
    for number in range(1, 201)
]


def prompts(
    user: User, hub: Hub, commit: str, model: dict[str, bytes], **changes: Any
) -> dict[str, Any]:
    """Choose prompts of a data set for the tiny model, whose tokenizer counts words."""
    user.download(hub.add(REPO, model))
    asked = {
        "source": "hub",
        "repo_id": DOLLY.removeprefix("datasets/"),
        "revision": commit,
        "file": "databricks-dolly-15k.jsonl",
        "columns": ["context", "instruction"],
    }
    limits = {"join": "", "min_tokens": 30, "max_tokens": 150, "count": 20}
    return user.run(
        "prompts.py",
        {"model": "k", "prompts": asked | limits | changes, "seed": 7},
        model=user.home / "download.json",
    )


def test_a_data_set_is_fetched_filtered_and_drawn_by_the_seed(
    hub: Hub, user: User, model: dict[str, bytes]
) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    commit = hub.add(DOLLY, {"databricks-dolly-15k.jsonl": lines, "README.md": b"x"})
    made = prompts(user, hub, commit, model)
    again = prompts(user, hub, commit, model)

    assert made["facts"] | {"source": ""} == made["facts"] | {
        "source": "",
        "seed": 7,
        "filter": {"min_tokens": 30, "max_tokens": 150, "count": 20},
        "offered": 200,
        "chosen": 20,
    }
    assert made["facts"]["source"] == f"databricks/databricks-dolly-15k at {commit}"
    assert made["facts"]["tokens"]["min"] >= 30
    assert made["facts"]["tokens"]["max"] <= 150
    assert made["files"] == again["files"]
    assert not [path for _, path, _ in hub.asked("README.md")]


@pytest.mark.slow
def test_parquet_and_chat_messages_are_read_by_their_columns(
    hub: Hub, user: User, model: dict[str, bytes]
) -> None:
    chats = [
        {
            "talk": [
                {"role": "system", "content": "Be."},
                {"role": "user", "content": "word one"},
                {"role": "assistant", "content": "no"},
                {"role": "user", "content": "word"},
            ]
        }
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(chats * 3), sink)
    commit = hub.add(DOLLY, {"data/train.parquet": sink.getvalue().to_pybytes()})
    made = prompts(user, hub, commit, model, file="data/train.parquet", turns="talk", min_tokens=1)

    chosen = [
        json.loads(line) for line in Path(made["path"], "prompts.jsonl").read_text().splitlines()
    ]
    assert [row["turns"] for row in chosen] == [["word one", "word"]] * 3
    assert made["facts"]["turns"] == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"file": "train.jsonl"},
            "has no file train.jsonl. It has: bad.parquet, databricks-dolly-15k.jsonl",
        ),
        pytest.param(
            {"columns": ["question"]},
            "line 1: no column question; there are instruction, context",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"turns": "response"},
            "column response does not hold a list of texts, or of messages",
            marks=pytest.mark.slow,
        ),
        ({"file": "bad.parquet"}, "is not a whole Parquet file"),
        pytest.param(
            {"min_tokens": 900, "max_tokens": 999},
            "No prompt has between 900 and 999 tokens",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_data_set_that_does_not_fit_says_how(
    hub: Hub, user: User, model: dict[str, bytes], changes: dict[str, Any], words: str
) -> None:
    rows = [row | {"response": 7} for row in ROWS]
    commit = hub.add(
        DOLLY,
        {
            "databricks-dolly-15k.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode(),
            "bad.parquet": b"PAR1 no",
        },
    )

    assert words in refused(prompts(user, hub, commit, model, **changes), "no_prompts")


PIN = """
import sys
from pathlib import Path
from config.pins import Pins
pins = Pins(Path(sys.argv[1]))
print(pins.pin("model", sys.argv[2], "main"))
pins.save()
"""


def test_branches_are_locked_once_and_moved_by_one_command(
    hub: Hub, user: User, model: dict[str, bytes]
) -> None:
    first = hub.add(REPO, model)
    lock = user.home / "mine.lock.yaml"
    ask = [sys.executable, "-c", PIN, str(lock), REPO]

    def pinned() -> tuple[str, str]:
        done = subprocess.run(
            ask,
            env=user.environment | {"PYTHONPATH": str(ROOT / "scripts")},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip(), done.stderr

    commit, said = pinned()
    assert commit == first
    assert f"model owner/tiny: 'main' is pinned to {first} ({lock})" in said
    assert yaml.safe_load(lock.read_text()) == {"model": {"owner/tiny@main": first}}
    second = hub.add(REPO, model | {"README.md": b"another"})
    hub.requests.clear()
    assert pinned()[0] == first, "a lock is not moved by what the hub says now"
    assert hub.requests == []

    move = [sys.executable, str(ROOT / "scripts/pin.py"), str(lock)]
    assert (
        subprocess.check_output(move, env=user.environment, text=True)
        == f"model owner/tiny@main: {first} -> {second}\n"
    )
    assert (
        subprocess.check_output([*move, "owner/tiny"], env=user.environment, text=True)
        == "nothing has moved\n"
    )
    assert pinned()[0] == second


def watch(run: subprocess.Popen[str], secret: str) -> list[str]:
    """Command lines with the secret in them that were seen before the run ended."""
    seen: set[str] = set()
    while run.poll() is None:
        for process in psutil.process_iter(["cmdline"]):
            line = " ".join(process.info["cmdline"] or [])
            seen |= {line} if secret in line else set()
        time.sleep(0.5)
    return sorted(seen)


@pytest.mark.slow
def test_an_experiment_from_the_hub_killed_and_gone_on_with(
    hub: Hub, user: User, product: Path, smollm2: Manifest
) -> None:
    """A gated model and dolly's rows by branch name, real weights, two real backends: a kill in the middle of the transfer, then the report."""
    weights = {
        path.name: path.read_bytes()
        for path in [*smollm2.file("hf").iterdir(), smollm2.file("gguf")]
        if path.is_file()
    }
    commit = hub.add(REPO, weights, access="gated")
    texts = [
        json.loads(line) for line in (ROOT / "prompts/showdown.jsonl").read_text().splitlines()
    ]
    dolly = hub.add(
        DOLLY,
        {
            "databricks-dolly-15k.jsonl": "".join(
                json.dumps(row) + "\n" for row in texts * 3
            ).encode()
        },
    )
    hub.faults = {"model.safetensors": ["slow 40000000"]}
    experiment = {
        "results": "results-hub",
        "models": [
            {"name": "smol", "source": "hub", "repo_id": REPO, "gguf": smollm2.file("gguf").name}
        ],
        "backends": [{"name": "llamacpp"}, {"name": "vllm"}],
        "workloads": [
            {
                "name": "dolly",
                "max_tokens": 16,
                "prompts": {
                    "source": "hub",
                    "repo_id": DOLLY.removeprefix("datasets/"),
                    "file": "databricks-dolly-15k.jsonl",
                    "rules": "study",
                },
            }
        ],
        "concurrencies": [2],
        "trials": 1,
        "load": {"ramp_s": 1, "window_s": 8, "warmup_requests": 2},
        "calibration": {"streams": [2], "step_s": 0.5},
    }
    (product / "hub.yaml").write_text(yaml.safe_dump(experiment))
    user.more = {
        "HF_TOKEN": TOKEN,
        "SHOWDOWN_STORE": str(store.root()),
        "SHOWDOWN_MACHINE_LOCK": str(user.home / "machine.lock"),
    }
    started = time.time()

    def run() -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-m",
            "snakemake",
            "--cores",
            "1",
            "report",
            "--configfile",
            "hub.yaml",
        ]
        return subprocess.Popen(
            command,
            cwd=product,
            env=user.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    first = run()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not any(
        part.stat().st_size >= 50 << 20 for part in (user.home / "hf").rglob("*.incomplete")
    ):
        time.sleep(0.05)
    assert first.poll() is None, first.communicate()[0][-4000:]
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "1", "--unlock", "--configfile", "hub.yaml"],
        cwd=product,
        env=user.environment,
        check=True,
    )
    hub.requests.clear()
    second = run()
    seen = watch(second, TOKEN)
    said = second.communicate()[0]

    assert second.returncode == 0, said[-4000:]
    assert any(
        int(headers["Range"][6:-1]) >= 50 << 20
        for _, path, headers in hub.asked("cdn")
        if "Range" in headers
    ), "the second run went on with what the first had"
    assert yaml.safe_load((product / "hub.lock.yaml").read_text()) == {
        "model": {f"{REPO}@main": commit},
        "dataset": {"databricks/databricks-dolly-15k@main": dolly},
    }
    with (product / "results-hub/summary.csv").open() as source:
        assert {
            (row["backend"], row["outcome"], row["answers_broken"])
            for row in csv.DictReader(source)
        } == {(name, "measured", "False") for name in ("llamacpp", "vllm")}
    [made] = [
        json.loads(path.read_text())
        for path in (product / "results-hub/prompts/smol/dolly").iterdir()
    ]
    assert made["facts"]["filter"] == {"min_tokens": 30, "max_tokens": 150, "count": None}
    assert f"'main' is pinned to {commit}" in said
    assert "MB/s" in said, "progress is told"
    assert seen == []
    written = [
        *product.rglob("*"),
        *(user.home / "hf").rglob("*"),
        *(
            path
            for stage in ("download", "prompts", "quantize", "build")
            for path in (store.root() / stage).rglob("*")
        ),
    ]
    assert [
        path
        for path in written
        if path.is_file()
        and path.stat().st_mtime >= started
        and TOKEN.encode() in path.read_bytes()
    ] == []
    assert TOKEN not in said


@pytest.mark.online
def test_the_real_hub(tmp_path: Path) -> None:
    """For whoever has a network: a tiny model by branch, its lock, its bytes."""
    user = User(tmp_path, "https://huggingface.co")
    command = [
        sys.executable,
        "-c",
        PIN,
        str(tmp_path / "a.lock.yaml"),
        "hf-internal-testing/tiny-random-LlamaForCausalLM",
    ]
    commit = subprocess.check_output(
        command, env=user.environment | {"PYTHONPATH": str(ROOT / "scripts")}, text=True
    ).strip()
    made = user.download(commit, repo_id="hf-internal-testing/tiny-random-LlamaForCausalLM")

    assert re.fullmatch("[0-9a-f]{40}", commit)
    assert made["failure"] is None
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= {
        file["path"] for file in made["files"]
    }
    assert user.download("0" * 40)["failure"]["kind"] == "download_failed"
