"""The default experiment as a newcomer runs it: three real servers, one real model. Minutes; the store may spare some."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

import backends
from loadgen.wire import frames
from manifest import Manifest
from metrics.stream import event
from runtime import Launch, check, process
from serving import until_ready


def snakemake(product: Path, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "snakemake", "--cores", "1", *arguments], cwd=product, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_the_default_measures_three_real_backends(product: Path) -> None:
    snakemake(product, "report")
    with (product / "results/summary.csv").open() as source:
        rows = list(csv.DictReader(source))

    assert [(row["backend"], row["outcome"]) for row in rows] == [(name, "measured") for name in ("llamacpp", "openvino", "vllm") for _ in range(2)], rows
    for row in rows:
        assert int(row["failed"]) == 0, row
        assert float(row["output_token_throughput"]) > 1
        assert 1 < float(row["ttft_p50_ms"]) < 60_000
        assert row["answers_broken"] == "False"
        assert float(row["in_flight"]) == pytest.approx(float(row["value"]), rel=0.1)
    assert len({row["output_token_throughput"] for row in rows}) == 6
    assert "Nothing to be done" in snakemake(product, "report")
    page = (product / "results/report.html").read_text()
    assert "dequantized" in page, "the report says what the weights are"


def ask(url: str, body: dict[str, Any] | bytes) -> tuple[int, bytes]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, {"Content-Type": "application/json"}), timeout=120) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


CHAT = {"model": "m", "messages": [{"role": "user", "content": "Repeat exactly: 😀 Grüße aus Köln"}], "max_tokens": 24, "temperature": 0}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llamacpp", "openvino"])
def test_a_real_server_speaks_as_its_adapter_says(product: Path, name: str, tmp_path: Path) -> None:
    """After the run above: the same engine and environment, asked in the ways that the load generator does not."""
    adapter = backends.load(name)
    engine = Manifest.load(product / f"results/build/smollm2-135m-instruct/none/{name}.json")
    python = Manifest.load(product / f"results/environment/{name}.json").facts["python"]
    port = process.free_port()
    command = adapter.command(backends.Serve(engine, python, "m", port, 256, 4, 1, 1, adapter.Options(), ()))
    base = f"http://127.0.0.1:{port}"
    with process.serve(Launch(command.argv, command.env, tmp_path / "log", tmp_path)) as server:
        asyncio.run(until_ready(server, base + adapter.READY, 60))

        status, said = ask(f"{base}/v1/chat/completions", CHAT)
        whole = json.loads(said)
        assert status == 200
        assert whole["usage"]["completion_tokens"] <= 24

        status, streamed = ask(f"{base}/v1/chat/completions", CHAT | {"stream": True, "stream_options": {"include_usage": True}})
        told = [event(1, data) for _, data in frames(streamed)]
        text = "".join(one.content for one in told)
        assert text == whole["choices"][0]["message"]["content"], "whole characters only, and the same ones"
        assert told[-1].done
        assert [one.usage for one in told if one.usage][-1]["completion_tokens"] == whole["usage"]["completion_tokens"]
        assert sum(bool(one.content) for one in told) > 3, "a stream, not one lump"

        _, forced = ask(f"{base}/v1/chat/completions", CHAT | {"ignore_eos": True, "max_tokens": 40})
        assert json.loads(forced)["usage"]["completion_tokens"] == 40
        assert json.loads(forced)["choices"][0]["finish_reason"] == "length"

        for bad in (b"{not json", b'{"model": "m"}', json.dumps(CHAT | {"messages": "none"}).encode()):
            assert 400 <= ask(f"{base}/v1/chat/completions", bad)[0] <= 500
        if name == "openvino":
            assert ask(f"{base}/v1/chat/completions", CHAT | {"stop": ["x"]})[0] == 400
            assert ask(f"{base}/v1/chat/completions", CHAT | {"messages": [{"role": "user", "content": "word " * 400}]})[0] == 400
            for _ in range(4):  # leave in the middle: the engine drops what nobody waits for
                with socket.create_connection(("127.0.0.1", port)) as leaver:
                    data = json.dumps(CHAT | {"stream": True, "ignore_eos": True, "max_tokens": 200}).encode()
                    leaver.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
                    leaver.recv(100)
            assert ask(f"{base}/v1/chat/completions", CHAT)[0] == 200
        check(server, "after all that")


@pytest.mark.slow
def test_a_real_gguf_is_requantized_and_served(product: Path) -> None:
    """Q8_0 made from the package's Q4_1, answered by llama.cpp."""
    (product / "q8.yaml").write_text(
        "results: results-q8\nbackends: [{name: llamacpp}]\nquantizations: [{name: q8_0, method: gguf, type: Q8_0}]\nconcurrencies: [1]\nload: {ramp_s: 0, window_s: 10, warmup_requests: 1}\n"
    )
    snakemake(product, "report", "--configfile", "q8.yaml")
    with (product / "results-q8/summary.csv").open() as source:
        [row] = list(csv.DictReader(source))

    assert row["outcome"] == "measured"
    assert row["weights"] == "GGUF Q8_0, from GGUF Q4_1"
    assert row["answers_broken"] == "False"
