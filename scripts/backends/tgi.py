"""Hugging Face Text Generation Inference. Archived in March 2026; its last release is 3.3.7."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from backends import Command, Serve, never, openai_chat

ENVIRONMENT = None
IMAGE = "ghcr.io/huggingface/text-generation-inference:3.3.7"
CONTAINER = None
DEVICES = frozenset({"gpu"})
WEIGHTS = ("hf",)
METHODS: frozenset[str] = frozenset()
LAYOUTS = frozenset({"awq", "gptq", "compressed-tensors", "fp8", "exl2"})
READY = "/health"
INFO = ("/info",)
METRICS = "/metrics"
# router/src/validation.rs sets ignore_eos_token to false for every request.
FORCES_LENGTH = False
CACHE = None
LIKELIHOOD = None

builds = never
request = openai_chat


@dataclass(frozen=True)
class Options:
    """`max_input_share`: how much of the context a prompt may take. `usage_stats`: whether to say 'off' to its telemetry;
    releases before 2.3 do not know the word."""

    max_input_share: float = 0.5
    usage_stats: bool = True


def command(serve: Serve) -> Command:
    """Arguments of the image's own entry point. Unsharded unless told: by default it takes every GPU it sees. A quantized model says so itself."""
    argv = [
        "--model-id",
        str(serve.engine.file("hf")),
        "--served-model-name",
        serve.served_name,
        "--hostname",
        serve.host,
        "--port",
        str(serve.port),
    ]
    argv += [
        "--num-shard",
        str(serve.tensor_parallel),
        "--max-total-tokens",
        str(serve.context_length),
    ]
    argv += ["--max-input-tokens", str(int(serve.context_length * serve.options.max_input_share))]
    argv += ["--usage-stats", "off"] if serve.options.usage_stats else []
    argv += ["--dtype", serve.dtype] if serve.dtype != "auto" else []
    argv += ["--trust-remote-code"] if serve.trust_remote_code else []
    env = {"HF_HUB_OFFLINE": "1"}
    if serve.equal:
        argv += [
            "--max-concurrent-requests",
            str(serve.max_sequences),
            "--cuda-memory-fraction",
            str(serve.gpu_memory_share),
        ]
        env |= {"PREFIX_CACHING": "1" if serve.prefix_caching else "0"}
    return Command(argv + list(serve.args), env, through_entrypoint=True)


def realised(_log: str, info: dict[str, Any]) -> dict[str, Any]:
    """From /info."""
    told = info.get("/info", {})
    names = {
        "version": "version",
        "dtype": "model_dtype",
        "max_sequences": "max_concurrent_requests",
        "context_length": "max_total_tokens",
    }
    return {name: told[field] for name, field in names.items() if told.get(field) is not None}
