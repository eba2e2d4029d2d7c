"""LMDeploy with TurboMind. Releases up to 0.9.2 convert weights beforehand, later ones as they load; here it is always at load."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from backends import Ask, Command, Serve, never, openai_chat_ignore_eos

ENVIRONMENT = None
IMAGE = "openmmlab/lmdeploy:v0.16.0-cu12.8"
CONTAINER = None
DEVICES = frozenset({"gpu"})
WEIGHTS = ("hf",)
METHODS: frozenset[str] = frozenset()
LAYOUTS = frozenset({"awq", "gptq", "compressed-tensors", "fp8", "mxfp4"})
READY = "/health"
INFO = ("/v1/models",)
METRICS = "/metrics"
FORCES_LENGTH = True
CACHE = None
LIKELIHOOD = None

builds = never


@dataclass(frozen=True)
class Options:
    """`engine`: turbomind or pytorch. `model_format`: empty lets it read the model's own, else hf, awq, gptq, fp8, ...
    `log_level`: at INFO it says how it is set up."""

    engine: str = "turbomind"
    model_format: str = ""
    log_level: str = "INFO"


def command(serve: Serve) -> Command:
    """Prefix caching is off unless it is asked for; the share of memory is of what the weights leave free."""
    options = serve.options
    argv = [
        serve.python,
        "-m",
        "lmdeploy",
        "serve",
        "api_server",
        str(serve.engine.file("hf")),
        "--backend",
        options.engine,
    ]
    argv += [
        "--model-name",
        serve.served_name,
        "--server-name",
        serve.host,
        "--server-port",
        str(serve.port),
    ]
    argv += [
        "--tp",
        str(serve.tensor_parallel),
        "--session-len",
        str(serve.context_length),
        "--log-level",
        options.log_level,
    ]
    argv += ["--model-format", options.model_format] if options.model_format else []
    argv += ["--dtype", serve.dtype] if serve.dtype != "auto" else []
    argv += ["--trust-remote-code"] if serve.trust_remote_code else []
    if serve.equal:
        argv += [
            "--max-batch-size",
            str(serve.max_sequences),
            "--cache-max-entry-count",
            str(serve.gpu_memory_share),
        ]
        argv += ["--enable-prefix-caching"] if serve.prefix_caching else []
    # TurboMind itself would log every step of every request.
    return Command(
        argv + list(serve.args),
        {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "TM_LOG_LEVEL": "WARNING"},
    )


def request(ask: Ask, serve: Serve) -> tuple[str, dict[str, Any]]:
    """Its word for the least number of tokens is min_new_tokens; fields it does not know are ignored."""
    path, body = openai_chat_ignore_eos(ask, serve)
    return path, body | ({"min_new_tokens": ask.max_tokens} if ask.forced else {})


def realised(log: str, info: dict[str, Any]) -> dict[str, Any]:
    """From the engine configuration that it logs at level INFO (TurbomindEngineConfig(...))."""
    found: dict[str, Any] = {}
    # The first is what it was told, the last what it made of that.
    *_, told = None, *re.finditer(r"TurbomindEngineConfig\((.*)\)", log)
    for name, field in {
        "dtype": "dtype",
        "quantization": "model_format",
        "max_sequences": "max_batch_size",
        "context_length": "session_len",
    }.items():
        match = re.search(rf"\b{field}='?([\w.-]+)'?", told.group(1)) if told else None
        if match and match.group(1) != "None":
            found[name] = int(match.group(1)) if match.group(1).isdigit() else match.group(1)
    match = re.search(r"\benable_prefix_caching=(True|False)", told.group(1)) if told else None
    if match:
        found["prefix_caching"] = match.group(1) == "True"
    return found
