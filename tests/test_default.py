"""The default experiment as a newcomer runs it: three real servers, one real model. Minutes; the store may spare some."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

import backends
from comparison.status import shortcomings
from loadgen.stream import event
from loadgen.wire import frames
from pipeline import results
from pipeline.artifact import Manifest
from runtime import Launch, check, process
from runtime.server import until_ready
from test_methods import autoawq_without_the_remedy


def snakemake(product: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "1", *arguments],
        cwd=product,
        env=os.environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def result(folder: Path) -> Path:
    """The one result that a job's folder holds."""
    [path] = (path for path in folder.glob("*.json") if results.NAME.fullmatch(path.name))
    return path


@pytest.mark.slow
def test_the_default_measures_three_real_backends(product: Path) -> None:
    snakemake(product)
    with (product / "results/summary.csv").open() as source:
        rows = list(csv.DictReader(source))

    assert [(row["backend"], row["outcome"]) for row in rows] == [
        (name, "measured") for name in ("llamacpp", "openvino", "vllm") for _ in range(2 * 3)
    ], rows
    for row in rows:
        assert int(row["failed"]) == 0, row
        assert float(row["output_token_throughput"]) > 1
        assert 1 < float(row["ttft_p50_ms"]) < 60_000
        assert row["answers_broken"] == "False"
        assert float(row["in_flight"]) == pytest.approx(float(row["value"]), rel=0.1)
    assert len({row["output_token_throughput"] for row in rows}) == 18
    assert "Nothing to be done" in snakemake(product)
    assert len(list((product / "results/logs").rglob("server.*.log"))) == 9, "a start a session"
    page = (product / "results/report.html").read_text()
    assert {row["weights"] for row in rows} == {
        "GGUF Q4_1",
        "GGUF F16, from GGUF Q4_1",
        "bfloat16 safetensors, dequantized from GGUF Q4_1",
    }
    assert "dequantized" in page, "the report says what the weights are"
    # All three serve the numbers of the package: what Transformers says of them in 32 bits they say as well.
    for row in rows:
        assert abs(float(row["perplexity_change_percent"])) < 1, row
        assert (
            float(row["perplexity_change_percent_low"])
            <= float(row["perplexity_change_percent"])
            <= float(row["perplexity_change_percent_high"])
        )
        assert row["comparable"] == "True"
        # How many are the very same depends on the arithmetic: vLLM takes bfloat16 on some CPUs.
        assert int(row["answers_identical"]) >= 1, row
        assert float(row["common_prefix_tokens"]) > 5, row


def ask(url: str, body: dict[str, Any] | bytes) -> tuple[int, bytes]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, data, {"Content-Type": "application/json"}), timeout=120
        ) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


CHAT = {
    "model": "m",
    "messages": [{"role": "user", "content": "Repeat exactly: 😀 Grüße aus Köln"}],
    "max_tokens": 24,
    "temperature": 0,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llamacpp", "openvino"])
def test_a_real_server_speaks_as_its_adapter_says(product: Path, name: str, tmp_path: Path) -> None:
    """After the run above: the same engine and environment, asked in the ways that the load generator does not."""
    adapter = backends.load(name)
    engine = Manifest.load(result(product / f"results/build/smollm2-135m-instruct/none/{name}"))
    python = Manifest.load(result(product / f"results/environment/{name}")).facts["python"]
    port = process.free_port()
    command = adapter.command(
        backends.Serve(engine, python, "m", port, 256, 4, 1, 1, adapter.Options(), ())
    )
    base = f"http://127.0.0.1:{port}"
    with process.serve(Launch(command.argv, command.env, tmp_path / "log", tmp_path)) as server:
        asyncio.run(until_ready(server, base + adapter.READY, 60))

        status, said = ask(f"{base}/v1/chat/completions", CHAT)
        whole = json.loads(said)
        assert status == 200
        assert whole["usage"]["completion_tokens"] <= 24

        status, streamed = ask(
            f"{base}/v1/chat/completions",
            CHAT | {"stream": True, "stream_options": {"include_usage": True}},
        )
        told = [event(1, data) for _, data in frames(streamed)]
        text = "".join(one.content for one in told)
        assert text == whole["choices"][0]["message"]["content"], (
            "whole characters only, and the same ones"
        )
        assert told[-1].done
        assert [one.usage for one in told if one.usage][-1]["completion_tokens"] == whole["usage"][
            "completion_tokens"
        ]
        assert sum(bool(one.content) for one in told) > 3, "a stream, not one lump"

        _, forced = ask(
            f"{base}/v1/chat/completions", CHAT | {"ignore_eos": True, "max_tokens": 40}
        )
        assert json.loads(forced)["usage"]["completion_tokens"] == 40
        assert json.loads(forced)["choices"][0]["finish_reason"] == "length"

        for bad in (
            b"{not json",
            b'{"model": "m"}',
            json.dumps(CHAT | {"messages": "none"}).encode(),
        ):
            assert 400 <= ask(f"{base}/v1/chat/completions", bad)[0] <= 500
        if name == "openvino":
            assert ask(f"{base}/v1/chat/completions", CHAT | {"stop": ["x"]})[0] == 400
            assert (
                ask(
                    f"{base}/v1/chat/completions",
                    CHAT | {"messages": [{"role": "user", "content": "word " * 400}]},
                )[0]
                == 400
            )
            for _ in range(4):  # leave in the middle: the engine drops what nobody waits for
                with socket.create_connection(("127.0.0.1", port)) as leaver:
                    data = json.dumps(
                        CHAT | {"stream": True, "ignore_eos": True, "max_tokens": 200}
                    ).encode()
                    leaver.sendall(
                        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
                        % len(data)
                        + data
                    )
                    leaver.recv(100)
            assert ask(f"{base}/v1/chat/completions", CHAT)[0] == 200
        check(server, "after all that")


@pytest.mark.slow
def test_a_real_gguf_is_requantized_and_served(product: Path) -> None:
    """Q8_0 made from the package's Q4_1, answered by llama.cpp."""
    (product / "q8.yaml").write_text(
        "results: results-q8\ntrials: 1\nbackends: [{name: llamacpp}]\nquantizations: [{name: q8_0, method: gguf, type: Q8_0}]\nconcurrencies: [1]\nload: {ramp_s: 0, window_s: 10, warmup_requests: 1}\n"
    )
    snakemake(product, "--configfile", "q8.yaml")
    with (product / "results-q8/summary.csv").open() as source:
        [row] = list(csv.DictReader(source))

    assert row["outcome"] == "measured"
    assert row["weights"] == "GGUF Q8_0, from GGUF Q4_1"
    assert row["answers_broken"] == "False"


def planned(product: Path, *arguments: str) -> dict[str, int]:
    """Jobs that a run would do now: rule -> count."""
    said = snakemake(product, "--dry-run", *arguments)
    found = {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", said, re.MULTILINE)}
    assert found or "Nothing to be done" in said
    return {name: count for name, count in found.items() if name not in ("all", "total")}


# The sessions of trial 1 ask; their cells stand, and so do the summaries of these.
ASKED = {"measure": 3, "summarize": 3, "assess": 3, "report": 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "old", "new", "jobs"),
    [
        ("scripts/metrics/quality.py", "if n < 3", "if n < 4", {"assess": 3, "report": 1}),
        ("scripts/questions/ask.py", "AT_ONCE = 4", "AT_ONCE = 2", ASKED),
        (
            "scripts/foreign/reference_answers.py",
            ".float()",
            ".double()",
            {"reference": 1, "assess": 3, "report": 1},
        ),
        (
            "config.yaml",
            "answer_tokens: 32",
            "answer_tokens: 31",
            {"reference": 1, **ASKED},
        ),
        ("config.yaml", "perplexity_percent: 5", "perplexity_percent: 6", {"report": 1}),
    ],
)
def test_what_reruns_of_the_judgement(
    product: Path, file: str, old: str, new: str, jobs: dict[str, int]
) -> None:
    path = product / file
    before = path.read_text()
    assert old in before, f"{file} has no {old!r} any more: mend this table"
    path.write_text(before.replace(old, new, 1))
    try:
        assert planned(product) == jobs
    finally:
        path.write_text(before)
    assert planned(product) == {}


def told(script: str, product: Path, folder: Path, task: dict[str, Any]) -> Path:
    """Run a stage's command on a task that no rule has written; gives its result."""
    (folder / "task.json").write_text(json.dumps(task))
    output = folder / script / "result.json"
    options = ["--spec", "task.json", "--log", "log", "--output", str(output)]
    command = [sys.executable, str(product / f"scripts/{script}.py"), *options]
    subprocess.run(command, cwd=folder, check=True)
    return output


def judged(product: Path, tmp_path: Path, backend: str, engine: Manifest) -> dict[str, Any]:
    """What a session and assess say of another engine of a backend, after the run above."""
    name = f"smollm2-135m-instruct/none/{backend}"
    engine.save(tmp_path / "engine.json")
    tasks = {}
    for stage, path in (("measure", f"{name}/t1"), ("assess", name)):
        task = json.loads(result(product / "results/specs" / stage / path).read_text())
        inputs = task["inputs"]
        task["inputs"] = {key: [str(product / path) for path in inputs[key]] for key in inputs}
        tasks[stage] = task
    tasks["measure"]["spec"]["cells"] = []
    tasks["measure"]["inputs"]["engine"] = [str(tmp_path / "engine.json")]
    tasks["assess"]["inputs"]["session"] = [
        str(told("measure", product, tmp_path, tasks["measure"]))
    ]
    found: dict[str, Any] = json.loads(
        told("assess", product, tmp_path, tasks["assess"]).read_text()
    )
    assert found["failure"] is None, found
    return found


LIMITS = {"perplexity_percent": 5.0, "common_prefix_tokens": 0}


@pytest.mark.slow
def test_the_lossy_reading_of_a_q4_1_gguf_is_caught(product: Path, tmp_path: Path) -> None:
    """OpenVINO given the package's Q4_1 as it is, without the build that writes it in 16 bits: a quarter worse, at full speed."""
    model = Manifest.load(result(product / "results/download/smollm2-135m-instruct"))
    found = judged(
        product,
        tmp_path,
        "openvino",
        Manifest(
            "build",
            "k",
            {},
            "",
            model.path,
            model.files,
            {"gguf": model.facts["gguf"], "form": "GGUF Q4_1"},
        ),
    )

    low, high = found["perplexity_change"]["interval"]
    assert 15 < low < found["perplexity_change"]["percent"] < high < 40
    assert shortcomings(found, LIMITS)


@pytest.mark.slow
def test_the_model_that_autoawq_breaks_on_a_cpu_is_caught(
    product: Path, tmp_path: Path, converter: str
) -> None:
    """AutoAWQ as it is published, its numbers written out in 16 bits so that vLLM serves them on any CPU."""
    model = Manifest.load(result(product / "results/download/smollm2-135m-instruct"))
    (tmp_path / "samples.json").write_text(
        json.dumps([list(range(start, start + 32)) for start in range(1000, 5000, 1000)])
    )
    asked = {"bits": 4, "group_size": 64, "clip": False, "seed": 1, "trust_remote_code": False}
    autoawq_without_the_remedy(model.file("hf"), tmp_path / "awq", tmp_path / "samples.json", asked)
    subprocess.run(
        [
            converter,
            "-c",
            WRITTEN_OUT,
            str(tmp_path / "awq"),
            str(model.file("hf")),
            str(tmp_path / "plain"),
        ],
        check=True,
    )
    found = judged(
        product,
        tmp_path,
        "vllm",
        Manifest("build", "k", {}, "", str(tmp_path / "plain"), [], {"hf": ".", "form": "broken"}),
    )

    assert found["perplexity"]["value"] > 1000
    assert found["agreement"]["identical"] == 0
    [reason] = shortcomings(found, LIMITS)
    assert "perplexity is" in reason


# The layout of AutoAWQ's GEMM form: eight 4-bit numbers an int32, in the order 0 4 1 5 2 6 3 7; weight = (number - zero point) * scale.
WRITTEN_OUT = """
import json, pathlib, shutil, sys, torch
from safetensors.torch import load_file, save_file
source, model, target = map(pathlib.Path, sys.argv[1:])
group = json.loads((source / "config.json").read_text())["quantization_config"]["group_size"]
tensors = load_file(source / "model.safetensors")
def unpacked(packed):
    return torch.stack([(packed >> 4 * place) & 15 for place in (0, 4, 1, 5, 2, 6, 3, 7)], -1).flatten(1).float()
plain = {}
for name, tensor in tensors.items():
    base = name.removesuffix(".qweight")
    if base != name:
        zeros, scales = (part.repeat_interleave(group, 0) for part in (unpacked(tensors[base + ".qzeros"]), tensors[base + ".scales"].float()))
        plain[base + ".weight"] = ((unpacked(tensor) - zeros) * scales).T.contiguous().bfloat16()
    elif not name.endswith((".qzeros", ".scales")):
        plain[name] = tensor.bfloat16()
shutil.copytree(model, target, ignore=shutil.ignore_patterns("*.safetensors"))
save_file(plain, target / "model.safetensors", metadata={"format": "pt"})
"""


@pytest.mark.slow
def test_awq_is_made_served_and_judged(product: Path) -> None:
    """llm-compressor's AWQ of the real model, by Transformers on any CPU, by vLLM on one with AVX-512; OpenVINO's own four bits beside it;
    a task of lm-evaluation-harness on those that tell probabilities."""
    (product / "awq.yaml").write_text(AWQ)
    snakemake(product, "--configfile", "awq.yaml")
    with (product / "results-awq/summary.csv").open() as source:
        rows = {row["backend"]: row for row in csv.DictReader(source)}

    able = "avx512f" in Path("/proc/cpuinfo").read_text().split()
    assert {name: row["outcome"] for name, row in rows.items()} == {
        "openvino": "measured",
        "transformers": "measured",
        "vllm": "measured" if able else "unsupported",
    }
    assert (
        "4-bit AWQ by llm-compressor (groups of 64, symmetric)" in rows["transformers"]["weights"]
    )
    assert int(rows["transformers"]["answers_compared"]) == 12
    assert float(rows["transformers"]["common_prefix_tokens"]) > 0
    assert rows["transformers"]["perplexity"] == "", "its API does not tell"
    for row in (rows["openvino"], *([rows["vllm"]] if able else [])):
        assert 5 < float(row["perplexity_change_percent"]) < 60
        assert row["comparable"] == "False"
        assert row["answers_broken"] == "False"
    manifest = Manifest.load(result(product / "results-awq/quantize/smollm2-135m-instruct/awq"))
    assert manifest.peak_memory_bytes > 1e9
    assert manifest.facts["calibration"] == {"count": 8, "length": 64, "seed": 20240605}
    quality = result(product / "results-awq/assess/smollm2-135m-instruct/int4/openvino")
    scored = json.loads(quality.read_text())["tasks"]["showdown_facts"]
    assert scored["items"] == 40
    assert scored["acc,none"] > 0.4, "one in four by chance"
    page = (product / "results-awq/report.html").read_text()
    assert "speed, and what is left of the model" in page
    assert "not comparable" in page


AWQ = """
results: results-awq
trials: 1
backends:
  - {name: openvino, quantizations: [int4]}
  - {name: vllm, quantizations: [awq]}
  - {name: transformers, quantizations: [awq]}
quantizations:
  - {name: int4, method: openvino, group_size: 64, symmetric: true}
  - name: awq
    method: llmcompressor
    group_size: 64
    symmetric: true
    grid: 3
    calibration: {samples: 8, sequence_length: 64, prompts: {source: file, path: prompts/showdown.jsonl}}
concurrencies: [1]
load: {ramp_s: 0, window_s: 8, warmup_requests: 1}
evaluation:
  tasks: {names: [showdown_facts], path: prompts/tasks, limit: 40}
"""


@pytest.mark.slow
def test_a_task_that_does_not_exist_costs_no_cell(product: Path) -> None:
    (product / "task.yaml").write_text(
        AWQ.replace("results-awq", "results-task")
        .replace("[showdown_facts]", "[showdown_fcats]")
        .replace("  - {name: vllm, quantizations: [awq]}\n", "")
        .replace("  - {name: transformers, quantizations: [awq]}\n", "")
    )
    snakemake(product, "--configfile", "task.yaml")
    session = product / "results-task/measure/smollm2-135m-instruct/int4/openvino/t1"
    failure = json.loads((session / "quality.json").read_text())["failure"]

    assert failure["kind"] == "no_task"
    assert "does not know all of showdown_fcats" in failure["reason"]
    assert "evaluation.tasks.names" in failure["remedy"]
    assert json.loads((session / "chat/c1/cell.json").read_text())["failure"] is None
