"""Compare load generators against a server whose truth is known: who records what it sent, when it was sent, at what cost.

    .venv/bin/python benchmarks/loadgen/compare.py [--streams 100 400 1000] [--repeats 3] [--clients ours floor ...] [--gap-ms 20]

Needs a C compiler (apt install gcc libc6-dev). Builds the server (paced.c) and the floor (floor.c), installs the peers from
hashed locks, each in an environment of its own in the store, runs each client in turn, and prints a table. Writes results.json,
results.md and results.svg beside itself.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "report")]

import numpy as np
import psutil
import vl_convert
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import charts
import environment
from config import experiment
from config import plan as planning
from host.machine import describe_host
from pipeline import store
from runtime.process import free_port

log = logging.getLogger(__name__)
TTFT_MS, TOKENS, ROUNDS = 200.0, 200, 3
# CPU times are read this often, and new processes looked for each so many times.
SAMPLE_S, LISTED = 0.1, 10
LIMIT_S = 600
CLIENTS = ("floor", "ours", "vllm", "guidellm", "aiperf")
NAMES = {
    "floor": "bare C loop",
    "ours": "ours",
    "vllm": "vllm bench serve",
    "guidellm": "GuideLLM",
    "aiperf": "AIPerf",
}


@dataclass(frozen=True)
class Bench:
    """Where everything is: the server's port and pace, the compiled floor, the peers' interpreters, a tokenizer, a folder for results.

    `workers`: processes of ours; None leaves it to itself.
    """

    port: int
    gap_ms: float
    workers: int | None
    floor: Path
    pythons: dict[str, str]
    tokenizer: Path
    folder: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def round_s(self) -> float:
        """What one answer takes."""
        return (TTFT_MS + (TOKENS - 1) * self.gap_ms) / 1e3


def commands(bench: Bench, client: str, streams: int) -> list[str]:
    """How each client is run, at its defaults: so many streams, three rounds of requests, streaming chat."""
    requests = str(ROUNDS * streams)
    python = bench.pythons.get(client, sys.executable)
    beside = str(Path(python).with_name(client))
    return {
        "floor": [str(bench.floor), str(bench.port), str(streams), str(ROUNDS)],
        "ours": [
            *(
                python,
                str(HERE / "ours.py"),
                str(bench.port),
                str(streams),
                f"{ROUNDS * bench.round_s:.3f}",
                str(bench.tokenizer / "tokenizer.json"),
            ),
            *([str(bench.workers)] if bench.workers else []),
        ],
        "vllm": [
            *(
                python,
                str(HERE / "vllm_bench_serve.py"),
                "--backend",
                "openai-chat",
                "--endpoint",
                "/v1/chat/completions",
                "--base-url",
                bench.url,
            ),
            *(
                "--model",
                "paced",
                "--tokenizer",
                str(bench.tokenizer),
                "--dataset-name",
                "random",
                "--random-input-len",
                "16",
            ),
            *(
                "--random-output-len",
                str(TOKENS),
                "--num-prompts",
                requests,
                "--max-concurrency",
                str(streams),
                "--percentile-metrics",
                "ttft,itl",
            ),
            *(
                "--metric-percentiles",
                "50,99",
                "--save-result",
                "--result-dir",
                str(bench.folder),
                "--result-filename",
                "result.json",
                "--disable-tqdm",
            ),
        ],
        "guidellm": [
            *(
                beside,
                "run",
                "--backend",
                f"kind=openai_http,target={bench.url},model=paced",
                "--profile",
                f"kind=concurrent,streams={streams}",
            ),
            *(
                "--constraint",
                f"kind=max_requests,count={requests}",
                "--tokenizer",
                f"kind=hf_auto,model={bench.tokenizer}",
            ),
            *(
                "--data",
                f"kind=synthetic_text,prompt_tokens=16,output_tokens={TOKENS}",
                "--output",
                f"kind=json,path={bench.folder / 'result.json'}",
            ),
            "--disable-progress",
        ],
        "aiperf": [
            *(
                beside,
                "profile",
                "-m",
                "paced",
                "-u",
                bench.url,
                "--endpoint-type",
                "chat",
                "--streaming",
                "--concurrency",
                str(streams),
            ),
            *(
                "--request-count",
                requests,
                "--tokenizer",
                str(bench.tokenizer),
                "--isl",
                "16",
                "--osl",
                str(TOKENS),
                "--ui",
                "none",
            ),
            *("--artifact-dir", str(bench.folder)),
        ],
    }[client]


def parsed(client: str, said: str, folder: Path) -> dict[str, Any]:
    """What a client reports: tokens_per_s, ttft_ms and gap_ms with p50 and p99."""
    if client in ("floor", "ours"):
        found: dict[str, Any] = json.loads(said.splitlines()[-1])
        return found
    if client == "vllm":
        result = json.loads((folder / "result.json").read_text())
        figures = {"tokens_per_s": result["output_throughput"]}
        return figures | {
            name: {q: result[f"{q}_{key}_ms"] for q in ("p50", "p99")}
            for name, key in (("ttft_ms", "ttft"), ("gap_ms", "itl"))
        }
    if client == "guidellm":
        metrics = json.loads((folder / "result.json").read_text())["benchmarks"][0]["metrics"]
        figures = {"tokens_per_s": metrics["output_tokens_per_second"]["successful"]["mean"]}
        spreads = {"ttft_ms": "time_to_first_token_ms", "gap_ms": "inter_token_latency_ms"}
        return figures | {
            name: {q: metrics[key]["successful"]["percentiles"][q] for q in ("p50", "p99")}
            for name, key in spreads.items()
        }
    result = json.loads((folder / "profile_export_aiperf.json").read_text())
    figures = {"tokens_per_s": result["output_token_throughput"]["avg"]}
    return figures | {
        name: {q: result[key][q] for q in ("p50", "p99")}
        for name, key in (("ttft_ms", "time_to_first_token"), ("gap_ms", "inter_chunk_latency"))
    }


def ask(bench: Bench, path: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{bench.url}/{path}", timeout=30) as response:
        found: dict[str, Any] = json.load(response)
        return found


def watch_cpu(
    process: psutil.Process, samples: list[tuple[int, float]], over: threading.Event
) -> None:
    """Append (moment, CPU seconds of the process tree so far), those of its processes that have ended included."""
    seen: dict[psutil.Process, float] = {process: 0.0}
    for step in itertools.count():
        if step % LISTED == 0:
            with contextlib.suppress(psutil.Error):
                seen |= {
                    child: 0.0 for child in process.children(recursive=True) if child not in seen
                }
        for one in seen:
            with contextlib.suppress(psutil.Error):
                times = one.cpu_times()
                seen[one] = times.user + times.system
        samples.append((perf_counter_ns(), sum(seen.values())))
        if over.wait(SAMPLE_S):
            return


def measured(bench: Bench, client: str, streams: int) -> dict[str, Any]:
    """One run of one client: what it says, what the server says it did, and what CPU it took meanwhile."""
    ask(bench, "reset")
    samples: list[tuple[int, float]] = []
    over = threading.Event()
    local = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    # AIPerf takes a tokenizer's folder for a repository when it is told to stay offline.
    env = os.environ | (local if client != "aiperf" else {}) | {"NO_PROXY": "127.0.0.1"}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = psutil.Popen(
            commands(bench, client, streams), stdout=out, stderr=err, env=env, cwd=bench.folder
        )
        watching = threading.Thread(target=watch_cpu, args=(process, samples, over))
        watching.start()
        try:
            code = process.wait(LIMIT_S)
        finally:
            over.set()
            watching.join()
            if process.is_running():
                process.kill()
        out.seek(0), err.seek(0)
        said, complaints = out.read(), err.read()
    if code:
        raise SystemExit(f"{NAMES[client]} ended with code {code}:\n{(complaints or said)[-3000:]}")
    truth = ask(bench, "truth")
    moments, cpu = zip(*samples, strict=True)
    used = float(
        np.interp(truth["last_ns"], moments, cpu) - np.interp(truth["first_ns"], moments, cpu)
    )
    span_s = (truth["last_ns"] - truth["first_ns"]) / 1e9
    figures = {
        name: value
        for name, value in parsed(client, said, bench.folder).items()
        if name in ("tokens_per_s", "ttft_ms", "gap_ms")
    }
    return figures | {
        "client": client,
        "streams": streams,
        "cpu_cores": used / span_s,
        "offered_tokens_per_s": streams * TOKENS / bench.round_s,
        "truth": truth | {"cores": truth["cpu_s"] / span_s},
    }


@contextlib.contextmanager
def prepared(clients: list[str], gap_ms: float, workers: int | None) -> Iterator[Bench]:
    """Compile, install, train a tokenizer, start the server."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for program in ("paced", "floor"):
            try:
                subprocess.run(
                    [
                        "gcc",
                        "-O2",
                        "-Wall",
                        "-Wextra",
                        "-o",
                        str(folder / program),
                        str(HERE / f"{program}.c"),
                    ],
                    check=True,
                )
            except FileNotFoundError:
                raise SystemExit("No C compiler. Remedy: apt install gcc libc6-dev") from None
        pythons = {client: peer(client) for client in clients if client not in ("floor", "ours")}
        tokenizer = trained(folder / "tokenizer")
        port = free_port()
        server = subprocess.Popen(
            [str(folder / "paced"), str(port), str(TTFT_MS), str(gap_ms), str(TOKENS)]
        )
        first_in_line(server.pid)
        try:
            (folder / "out").mkdir()
            bench = Bench(
                port, gap_ms, workers, folder / "floor", pythons, tokenizer, folder / "out"
            )
            until_up(lambda: ask(bench, "truth"))
            yield bench
        finally:
            server.kill()
            server.wait()


def first_in_line(pid: int) -> None:
    """Let the server run whenever it has to: a client that takes all cores must not make it late."""
    try:
        os.sched_setscheduler(pid, os.SCHED_FIFO, os.sched_param(1))
    except OSError:
        log.warning(
            "The server may not run before the clients here (it takes root): see how late it was."
        )


def until_up(probe: Callable[[], Any]) -> None:
    for _ in range(100):
        try:
            probe()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit("the paced server did not come up")


def peer(client: str) -> str:
    """The interpreter of a peer's environment: vLLM's is the pipeline's own, the others have locks beside this file."""
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    if client == "vllm":
        job = planning.Plan(experiment.load(config), ROOT / "scripts").environment("vllm")
        lock, spec, code = ROOT / "envs" / "vllm.txt", json.loads(job.spec), job.code
    else:
        lock = HERE / f"{client}.txt"
        spec, code = (
            {"name": client, "lock_sha256": experiment.sha256(lock), "python": sys.version},
            "",
        )
    made = store.obtain(
        store.root(),
        "environment",
        spec,
        code,
        lambda folder: environment.install(lock, config["extra_index_url"], folder),
        hashed=False,
    )
    return str(made.facts["python"])


def trained(folder: Path) -> Path:
    """A small tokenizer for the peers that want one; ' the', which the server sends, is one token of it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(
        [(ROOT / "prompts" / "showdown.jsonl").read_text(), " the" * 1000], trainer
    )
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<eos>",
        "model_max_length": 8192,
        "chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 2000}))
    return folder


def middle(runs: list[dict[str, Any]], *way: str) -> tuple[float, float, float]:
    """Median, least and largest over the runs of one figure."""
    values = []
    for run in runs:
        value: Any = run
        for step in way:
            value = value[step]
        values.append(float(value))
    return statistics.median(values), min(values), max(values)


def spread(values: tuple[float, float, float], digits: int) -> str:
    mid, low, high = (f"{value:,.{digits}f}" for value in values)
    return mid if low == high else f"{mid} [{low}, {high}]"


def table(runs: list[dict[str, Any]]) -> str:
    """The table in Markdown: of several runs the median, with the least and the largest in brackets."""
    lines = [
        "| streams | client | tokens/s | of what is offered | TTFT p50, ms | TTFT p99, ms | chunk gap p50, ms | chunk gap p99, ms | client CPU, cores | server: TTFT p50 / p99, gap p99, late p99, ms; cores |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for streams, client in dict.fromkeys((run["streams"], run["client"]) for run in runs):
        mine = [run for run in runs if (run["streams"], run["client"]) == (streams, client)]
        rate = middle(mine, "tokens_per_s")
        times = [
            spread(middle(mine, name, q), 1 if name == "ttft_ms" else 2)
            for name in ("ttft_ms", "gap_ms")
            for q in ("p50", "p99")
        ]
        truth = [
            middle(mine, "truth", *way)[0]
            for way in (
                ("ttft_ms", "p50"),
                ("ttft_ms", "p99"),
                ("gap_ms", "p99"),
                ("late_ms", "p99"),
                ("cores",),
            )
        ]
        share = f"{100 * rate[0] / mine[0]['offered_tokens_per_s']:.1f} %"
        server = f"{truth[0]:.1f} / {truth[1]:.1f}, {truth[2]:.2f}, {truth[3]:.2f}; {truth[4]:.2f}"
        lines.append(
            f"| {streams:,} | {NAMES[client]} | {spread(rate, 0)} | {share} | {' | '.join(times)} | {spread(middle(mine, 'cpu_cores'), 2)} | {server} |"
        )
    return "\n".join(lines) + "\n"


def chart(runs: list[dict[str, Any]]) -> str:
    """Three panels as SVG: tokens recorded, TTFT p99, CPU; a colour a client."""
    rows = []
    for streams, client in dict.fromkeys((run["streams"], run["client"]) for run in runs):
        mine = [run for run in runs if (run["streams"], run["client"]) == (streams, client)]
        values = {
            "share": 100 * middle(mine, "tokens_per_s")[0] / mine[0]["offered_tokens_per_s"],
            "ttft": middle(mine, "ttft_ms", "p99")[0],
            "cpu": middle(mine, "cpu_cores")[0],
        }
        rows.append({"client": NAMES[client], "streams": streams} | values)
    names = [
        NAMES[client] for client in CLIENTS if NAMES[client] in {row["client"] for row in rows}
    ]
    panels = [
        {
            "title": title,
            "width": 210,
            "height": 220,
            "mark": {"type": "bar", "cornerRadiusEnd": 2},
            "encoding": {
                "x": {
                    "field": "streams",
                    "type": "ordinal",
                    "title": "streams",
                    "axis": {"labelAngle": 0},
                },
                "xOffset": {"field": "client", "sort": names},
                "y": {
                    "field": field,
                    "type": "quantitative",
                    "title": None,
                    **({"scale": {"type": "log", "domainMin": 100}} if field == "ttft" else {}),
                },
                "color": {
                    "field": "client",
                    "type": "nominal",
                    "scale": {"domain": names, "range": charts.PALETTE[: len(names)]},
                },
            },
        }
        for field, title in (
            ("share", "tokens/s recorded, % of what is offered"),
            ("ttft", "TTFT p99, ms (the server's: 200)"),
            ("cpu", "client CPU, cores"),
        )
    ]
    svg: str = vl_convert.vegalite_to_svg(
        {"$schema": charts.SCHEMA, "data": {"values": rows}, "hconcat": panels},
        config=charts.config("light") | {"background": "white"},
    )
    return svg


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, nargs="+", default=[100, 400, 1000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clients", nargs="+", choices=CLIENTS, default=list(CLIENTS))
    parser.add_argument(
        "--gap-ms", type=float, default=20.0, help="between two tokens of an answer"
    )
    parser.add_argument("--workers", type=int, help="processes of ours")
    parser.add_argument(
        "--output",
        type=Path,
        default=HERE,
        help="folder for results.json, results.md and results.svg",
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    runs = []
    with prepared(args.clients, args.gap_ms, args.workers) as bench:
        for repeat in range(1, args.repeats + 1):
            for streams in args.streams:
                for client in args.clients:
                    log.info(
                        "%s, %d streams, run %d of %d", NAMES[client], streams, repeat, args.repeats
                    )
                    runs.append(measured(bench, client, streams))
    runs.sort(key=lambda run: (run["streams"], CLIENTS.index(run["client"])))
    host = describe_host()
    about = f"{host['cpu']}, {host['cores']} cores, {host['system']}; {time.strftime('%Y-%m-%d')}; {args.repeats} runs each: median [least, largest]."
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "results.json").write_text(
        json.dumps({"host": host, "date": time.strftime("%Y-%m-%d"), "runs": runs}, indent=1) + "\n"
    )
    (args.output / "results.md").write_text(f"{table(runs)}\n{about}\n")
    (args.output / "results.svg").write_text(chart(runs))
    print((args.output / "results.md").read_text())


if __name__ == "__main__":
    main()
