"""MLC-LLM: weights converted and a library compiled beforehand. Upstream publishes no image; containers/mlc_llm builds one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from backends import Ask, Build, Command, Serve, openai_chat

ENVIRONMENT = None
IMAGE = None
CONTAINER = "mlc_llm"
DEVICES = frozenset({"gpu"})
WEIGHTS = ("hf",)
METHODS = frozenset({"mlc"})
LAYOUTS: frozenset[str] = frozenset()
# It has no health path; this one answers once the engine is up.
READY = "/v1/models"
INFO = ("/v1/models",)
METRICS = "/metrics"
FORCES_LENGTH = True
CACHE = None
LIKELIHOOD = None


@dataclass(frozen=True)
class Options:
    """`conv_template`: MLC-LLM's name of the model's chat template. `opt`: level of optimization of the compiler."""

    conv_template: str = "llama-3"
    prefill_chunk_size: int = 2048
    opt: str = "O3"


def builds(_options: Options) -> bool:
    return True


def steps(build: Build) -> list[Command]:
    """Weights without a quantization of MLC's own are q0f16. The library holds context, chunk and batch, the weights do not."""
    quantization = build.type if build.method == "mlc" and build.type else "q0f16"
    source, folder, program = (
        str(build.weights.file("hf")),
        str(build.folder),
        [build.python, "-m", "mlc_llm"],
    )
    convert = [*program, "convert_weight", source, "--quantization", quantization, "-o", folder]
    config = [
        *program,
        "gen_config",
        source,
        "--quantization",
        quantization,
        "--conv-template",
        build.options.conv_template,
    ]
    config += [
        "--context-window-size",
        str(build.context_length),
        "--prefill-chunk-size",
        str(build.options.prefill_chunk_size),
    ]
    config += [
        "--max-batch-size",
        str(build.max_sequences),
        "--tensor-parallel-shards",
        str(build.tensor_parallel),
        "-o",
        folder,
    ]
    compile_ = [
        *program,
        "compile",
        f"{folder}/mlc-chat-config.json",
        "--device",
        "cuda",
        "--opt",
        build.options.opt,
        "-o",
        f"{folder}/lib.so",
    ]
    return [Command(argv, {}) for argv in (convert, config, compile_)]


def command(serve: Serve) -> Command:
    """Mode 'server' is set under both policies: the default mode, 'local', works on four requests at a time."""
    engine = serve.engine.file("engine")
    argv = [
        serve.python,
        "-m",
        "mlc_llm",
        "serve",
        str(engine),
        "--model-lib",
        str(engine / "lib.so"),
        "--mode",
        "server",
        "--device",
        "cuda",
    ]
    argv += ["--host", serve.host, "--port", str(serve.port), "--enable-debug"]
    overrides = [
        f"tensor_parallel_shards={serve.tensor_parallel}",
        f"context_window_size={serve.context_length}",
    ]
    if serve.equal:
        overrides += [
            f"max_num_sequence={serve.max_sequences}",
            f"gpu_memory_utilization={serve.gpu_memory_share}",
        ]
        argv += ["--prefix-cache-mode", "radix" if serve.prefix_caching else "disable"]
    return Command([*argv, "--overrides", ";".join(overrides), *serve.args], {})


def request(ask: Ask, serve: Serve) -> tuple[str, dict[str, Any]]:
    """ignore_eos goes through debug_config, which counts only with --enable-debug; the model is known by its path."""
    path, body = openai_chat(ask, serve)
    forced = {"debug_config": {"ignore_eos": True}} if ask.forced else {}
    return path, body | forced | {"model": str(serve.engine.file("engine"))}


def realised(log: str, _info: dict[str, Any]) -> dict[str, Any]:
    """From the engine's line on the batch and cache that it chose for the GPU's memory."""
    patterns = {
        "max_sequences": r"max batch size will be set to (\d+)|max_num_sequence[\"' ]*[:=] *(\d+)",
        "kv_cache_tokens": r"max KV cache token capacity will be set to (\d+)|max_total_sequence_length[\"' ]*[:=] *(\d+)",
    }
    found = {}
    for name, pattern in patterns.items():
        match = re.search(pattern, log)
        if match:
            found[name] = int(next(group for group in match.groups() if group))
    return found
