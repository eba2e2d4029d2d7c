"""SGLang, in its own image or with an interpreter that has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from backends import ECHO, Command, Serve, never, openai_chat_min_tokens

ENVIRONMENT = None
IMAGE = "lmsysorg/sglang:v0.5.21"
CONTAINER = None
DEVICES = frozenset({"gpu"})
WEIGHTS = ("hf",)
METHODS: frozenset[str] = frozenset()
LAYOUTS = frozenset(
    {"awq", "gptq", "compressed-tensors", "fp8", "modelopt", "mxfp4", "bitsandbytes"}
)
READY = "/health"
INFO = ("/server_info", "/model_info")
METRICS = "/metrics"
RESET = "/flush_cache"
FORCES_LENGTH = True
CACHE = "SGLANG_CACHE_DIR"
LIKELIHOOD = ECHO

builds = never
request = openai_chat_min_tokens


@dataclass(frozen=True)
class Options:
    """`eager`: no CUDA graphs."""

    eager: bool = False


def command(serve: Serve) -> Command:
    argv = [
        serve.python,
        "-m",
        "sglang.launch_server",
        "--model-path",
        str(serve.engine.file("hf")),
        "--served-model-name",
        serve.served_name,
    ]
    argv += [
        "--host",
        serve.host,
        "--port",
        str(serve.port),
        "--tp-size",
        str(serve.tensor_parallel),
        "--context-length",
        str(serve.context_length),
    ]
    argv += ["--dtype", serve.dtype, "--random-seed", str(serve.seed), "--enable-metrics"]
    argv += ["--trust-remote-code"] if serve.trust_remote_code else []
    argv += ["--disable-cuda-graph"] if serve.options.eager else []
    if serve.equal:
        argv += [
            "--max-running-requests",
            str(serve.max_sequences),
            "--mem-fraction-static",
            str(serve.gpu_memory_share),
        ]
        argv += [] if serve.prefix_caching else ["--disable-radix-cache"]
    return Command(argv + list(serve.args), {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"})


def realised(_log: str, info: dict[str, Any]) -> dict[str, Any]:
    """From /server_info, which repeats its arguments with what it made of them."""
    told = info.get("/server_info", {})
    names = {
        "version": "version",
        "dtype": "dtype",
        "quantization": "quantization",
        "max_sequences": "max_running_requests",
        "context_length": "context_length",
        "kv_cache_tokens": "max_total_num_tokens",
        "kernel": "attention_backend",
    }
    found = {name: told[field] for name, field in names.items() if told.get(field) is not None}
    return found | (
        {"prefix_caching": not told["disable_radix_cache"]} if "disable_radix_cache" in told else {}
    )
