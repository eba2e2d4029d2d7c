"""TensorRT-LLM behind trtllm-serve. The engine is built up to release 1.2.1, the last that has trtllm-build; from 1.3 on set
`engine: pytorch`, and there is nothing to build."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from backends import Ask, Build, Command, Serve, openai_chat_min_tokens

ENVIRONMENT = None
IMAGE = "nvcr.io/nvidia/tensorrt-llm/release:1.2.1"
CONTAINER = None
DEVICES = frozenset({"gpu"})
WEIGHTS = ("hf",)
METHODS = frozenset({"modelopt"})
LAYOUTS: frozenset[str] = frozenset()
READY = "/health"
INFO = ("/version",)
METRICS = None
FORCES_LENGTH = True
CACHE = None
LIKELIHOOD = None
EXAMPLES = "/app/tensorrt_llm/examples"


@dataclass(frozen=True)
class Options:
    """`engine`: tensorrt (built beforehand) or pytorch. `max_num_tokens`: tokens of one step, all sequences together.
    `calib_size`, `calib_dataset`: of the quantization; a data set of the hub by name, or a folder."""

    engine: str = "tensorrt"
    max_num_tokens: int = 8192
    awq_block_size: int = 128
    calib_size: int = 32
    calib_dataset: str = "cnn_dailymail"


def builds(options: Options) -> bool:
    return options.engine == "tensorrt"


def steps(build: Build) -> list[Command]:
    """A checkpoint in TensorRT-LLM's own layout (quantize.py also writes unquantized ones: full_prec), then the engine,
    then the tokenizer beside it."""
    source, checkpoint, engine = (
        str(build.weights.file("hf")),
        str(build.folder / "checkpoint"),
        str(build.folder / "engine"),
    )
    options, dtype = (
        build.options,
        build.dtype
        if build.dtype != "auto"
        else "float16"
        if build.method == "modelopt"
        else "auto",
    )
    convert = [
        build.python,
        f"{EXAMPLES}/quantization/quantize.py",
        "--model_dir",
        source,
        "--output_dir",
        checkpoint,
    ]
    convert += [
        "--dtype",
        dtype,
        "--tp_size",
        str(build.tensor_parallel),
        "--qformat",
        build.type if build.method == "modelopt" and build.type else "full_prec",
    ]
    if build.method == "modelopt":
        convert += [
            "--awq_block_size",
            str(options.awq_block_size),
            "--calib_size",
            str(options.calib_size),
            "--calib_dataset",
            options.calib_dataset,
        ]
    compile_ = [
        "trtllm-build",
        "--checkpoint_dir",
        checkpoint,
        "--output_dir",
        engine,
        "--gemm_plugin",
        "auto",
    ]
    compile_ += [
        "--max_batch_size",
        str(build.max_sequences),
        "--max_num_tokens",
        str(options.max_num_tokens),
        "--max_seq_len",
        str(build.context_length),
    ]
    keep = "import pathlib, shutil, sys; source, target, spent = map(pathlib.Path, sys.argv[1:]); shutil.rmtree(spent)\n"
    keep += "target.mkdir(); [shutil.copy(path, target) for path in source.iterdir() if path.suffix in ('.json', '.jinja', '.model', '.txt')]"
    tokenizer = [build.python, "-c", keep, source, str(build.folder / "tokenizer"), checkpoint]
    return [Command(argv, {}) for argv in (convert, compile_, tokenizer)]


def command(serve: Serve) -> Command:
    """Block reuse, its prefix cache, is on unless a file of options says otherwise; the command writes that file first."""
    built = "engine" in serve.engine.facts
    model = serve.engine.file("engine") / "engine" if built else serve.engine.file("hf")
    argv = [
        "trtllm-serve",
        str(model),
        "--host",
        serve.host,
        "--port",
        str(serve.port),
        "--backend",
        "tensorrt" if built else "pytorch",
    ]
    argv += ["--tokenizer", str(serve.engine.file("engine") / "tokenizer")] if built else []
    argv += [
        "--tp_size",
        str(serve.tensor_parallel),
        "--max_seq_len",
        str(serve.context_length),
        "--max_num_tokens",
        str(serve.options.max_num_tokens),
    ]
    argv += ["--trust_remote_code"] if serve.trust_remote_code else []
    env = {"HF_HUB_OFFLINE": "1"}
    if not serve.equal:
        return Command(argv + list(serve.args), env)
    argv += [
        "--max_batch_size",
        str(serve.max_sequences),
        "--kv_cache_free_gpu_memory_fraction",
        str(serve.gpu_memory_share),
    ]
    argv += ["--extra_llm_api_options", "options.yaml"]
    written = "import os, sys; open('options.yaml', 'w').write(sys.argv[1]); os.execvp(sys.argv[2], sys.argv[2:])"
    options = f"kv_cache_config:\n  enable_block_reuse: {str(serve.prefix_caching).lower()}\n  free_gpu_memory_fraction: {serve.gpu_memory_share}\n"
    return Command([serve.python, "-c", written, options, *argv, *serve.args], env)


def request(ask: Ask, serve: Serve) -> tuple[str, dict[str, Any]]:
    """It rejects fields that it does not know (extra="forbid"), and knows its model by the path it was given."""
    path, body = openai_chat_min_tokens(ask, serve)
    built = "engine" in serve.engine.facts
    return path, body | {
        "model": str(serve.engine.file("engine") / "engine" if built else serve.engine.file("hf"))
    }


def realised(log: str, info: dict[str, Any]) -> dict[str, Any]:
    """From /version, and the sizes that the runtime logs as it loads an engine."""
    found: dict[str, Any] = {
        name: value
        for name, value in {"version": info.get("/version", {}).get("version")}.items()
        if value
    }
    patterns = {
        "max_sequences": r"max_batch_size[ =:]+(\d+)",
        "context_length": r"max_seq_len[ =:]+(\d+)",
        "kv_cache_tokens": r"max tokens in paged KV cache[: ]+(\d+)",
    }
    return found | {
        name: int(match.group(1))
        for name, pattern in patterns.items()
        if (match := re.search(pattern, log, re.IGNORECASE))
    }
