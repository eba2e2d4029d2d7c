"""What goes wrong at run time becomes a classified row of the report, and the other cells finish."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from conftest import EXPERIMENT, Checkout

FAST = {
    "concurrencies": [1],
    "load": {**EXPERIMENT["load"], "window_s": 0.6, "request_timeout_s": 1},
}


def only(checkout: Checkout, backend: str) -> dict[str, Any]:
    [cell] = [cell for path, cell in checkout.cells().items() if f"/{backend}/" in path]
    return cell


def page(checkout: Checkout) -> str:
    return (checkout.folder / "results/report.html").read_text()


@pytest.mark.slow
def test_every_way_a_server_fails_is_told_apart_while_the_others_finish(checkout: Checkout) -> None:
    """One run, one backend entry for each fault."""
    faults = {
        "no-start": ("server_died", "exit code 1 before it was ready"),
        "never-ready": ("start_timeout", "was not ready 3 s after its start"),
        "die": ("server_died", "under load"),
        "die-of-memory": ("out_of_memory", "memory ran out"),
        "refuse": ("no_answer", "http_error: 500: oops"),
    }
    entries = [
        {
            "name": fault,
            "adapter": "paced",
            "options": {
                "fault": fault,
                "fault_after": 0 if fault in ("refuse", "no-start", "never-ready") else 4,
            },
        }
        for fault in faults
    ]
    checkout.configure(
        **FAST,
        backends=[*entries, {"name": "sound", "adapter": "paced"}],
        server={**EXPERIMENT["server"], "start_timeout_s": 3},
    )

    checkout.snakemake()

    assert only(checkout, "sound")["failure"] is None
    for fault, (kind, words) in faults.items():
        failure = only(checkout, fault)["failure"]
        assert failure["kind"] == kind, failure
        assert words in failure["reason"]
        assert failure["remedy"]
        assert kind in page(checkout)
    assert "cannot start, as asked" in only(checkout, "no-start")["failure"]["log_tail"]
    summary = (checkout.folder / "results/summary.csv").read_text().splitlines()
    assert len(summary) == 1 + len(faults) + 1
    assert checkout.planned() == {}, "a server that failed will fail again: its cell is a result"


@pytest.mark.slow
def test_a_taken_port_fails_the_cell_and_is_tried_again(checkout: Checkout) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        checkout.configure(**FAST, server={**EXPERIMENT["server"], "port": port})
        checkout.snakemake()
        failure = only(checkout, "paced")["failure"]
        assert failure["kind"] == "port_taken"
        assert f"Port {port}" in failure["reason"]
        assert "server.port" in failure["remedy"]

    said = checkout.snakemake()

    assert "will be made again: Port" in said
    assert only(checkout, "paced")["failure"] is None
    assert "port_taken" not in page(checkout)
    assert checkout.planned() == {}


@pytest.mark.slow
def test_a_full_disk_fails_the_cell_with_the_numbers(checkout: Checkout) -> None:
    """The cell's folder is a file system of 64 KiB."""
    cell = checkout.folder / "results/measure/tiny/none/paced/t1/chat/c1"
    cell.mkdir(parents=True)
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(cell)], capture_output=True
    ).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        checkout.configure(
            **FAST,
            backends=[
                {"name": "paced", "options": {"tokens": 2000, "gap_ms": 0.0, "ttft_ms": 1.0}}
            ],
        )
        checkout.snakemake()
        failure = only(checkout, "paced")["failure"]
        assert failure["kind"] == "disk_full"
        assert "MiB free" in failure["reason"]
    finally:
        subprocess.run(["umount", str(cell)], check=True)


def broken_model(checkout: Checkout) -> None:
    (checkout.folder / "tiny-model/model.safetensors").write_bytes(b"not one")


def corrupt_gguf(checkout: Checkout) -> None:
    (checkout.folder / "tiny-model/tiny.gguf").write_bytes(
        b"GGUF\x03\x00\x00\x00 and then nothing of the kind"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (broken_model, "is not a whole safetensors file"),
        (corrupt_gguf, "tiny.gguf is not a whole GGUF file"),
    ],
)
def test_a_broken_model_is_a_failed_cell_with_the_files_name(
    checkout: Checkout, harm: Any, words: str
) -> None:
    checkout.configure(**FAST)
    harm(checkout)

    checkout.snakemake()

    failure = only(checkout, "paced")["failure"]
    assert failure["kind"] == "not_prepared"
    assert words in failure["reason"]
    assert words in page(checkout)


@pytest.mark.slow
def test_prompts_that_are_all_too_long_fail_their_cells(checkout: Checkout) -> None:
    prompts = {**EXPERIMENT["workloads"][0]["prompts"], "max_tokens": 3}
    checkout.configure(**FAST, workloads=[{**EXPERIMENT["workloads"][0], "prompts": prompts}])

    checkout.snakemake()

    assert (
        "No prompt has between 0 and 3 tokens; they have"
        in only(checkout, "paced")["failure"]["reason"]
    )


BAD = [
    ({"concurrencies": [0]}, "concurrencies[0]: 0 is less than the minimum of 1"),
    ({"backends": [{"name": "nobody"}]}, "there is no backend 'nobody'"),
    ({"colour": "red"}, "unknown key 'colour'"),
]


@pytest.mark.parametrize(("change", "words"), BAD)
def test_a_bad_configuration_starts_no_job(
    checkout: Checkout, change: dict[str, Any], words: str
) -> None:
    checkout.configure(**change)

    said = checkout.snakemake(fails=True)

    assert words in said
    assert "config.yaml" in said
    assert [path.name for path in (checkout.folder / "results").iterdir()] == ["calibrate"], (
        "which was there before"
    )


@pytest.mark.slow
def test_what_a_model_says_is_escaped(checkout: Checkout) -> None:
    checkout.configure(**FAST)
    server = checkout.folder / "scripts/foreign/paced_server.py"
    server.write_text(server.read_text().replace('f" w{number}"', '"<script>alert(1)</script>"'))

    checkout.snakemake()

    assert "<script>alert(1)" not in page(checkout)
    assert "&lt;script&gt;alert(1)" in page(checkout)


@pytest.mark.slow
def test_no_token_reaches_anything_that_is_written(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_do_not_write_me_down")
    checkout.configure(**FAST)

    said = checkout.snakemake()

    assert "hf_do_not" not in said
    written = [path for path in checkout.folder.rglob("*") if path.is_file()]
    assert [path for path in written if b"hf_do_not" in path.read_bytes()] == []
    assert (
        json.loads(
            next(Path(checkout.folder, "results/summarize").rglob("summary.json")).read_text()
        )["metrics"]["requests"]
        > 0
    )


@pytest.mark.slow
def test_names_and_paths_of_the_configuration_are_no_shell(checkout: Checkout) -> None:
    """A prompt file, a results folder and a model folder whose names would do harm in a shell string."""
    (checkout.folder / "a; touch harm").mkdir()
    prompts = checkout.folder / "a; touch harm" / "$(touch harm).jsonl"
    prompts.write_bytes((checkout.folder / "prompts/showdown.jsonl").read_bytes())
    source = {**EXPERIMENT["workloads"][0]["prompts"], "path": str(prompts)}
    checkout.configure(
        **FAST,
        results="results `touch harm`",
        workloads=[{**EXPERIMENT["workloads"][0], "prompts": source}],
    )

    checkout.snakemake()

    assert (checkout.folder / "results `touch harm`/report.html").is_file()
    assert list(checkout.folder.rglob("harm")) == []
