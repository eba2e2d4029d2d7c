"""A checkpoint as it lies in a folder: is it whole, what are its numbers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gguf import GGUFReader
from safetensors import SafetensorError, safe_open

from pipeline.failure import Failure


def hf_folder(folder: Path, pickled: Sequence[str] = ()) -> dict[str, Any]:
    """Facts of a Hugging Face folder whose safetensors headers have been read; Failure `bad_model` if it is not whole.

    `pickled` names weights that are read without looking at them: looking would run their code.
    """
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise Failure(
                "bad_model", f"{folder} has no {name}.", "Name a complete Hugging Face folder."
            )
    layout = (
        json.loads((folder / "config.json").read_text())
        .get("quantization_config", {})
        .get("quant_method")
    )
    quantized = {"layout": layout} if layout else {}
    if pickled:
        return {"hf": ".", "tokenizer": ".", "hf_form": "pickled weights", **quantized}
    types: Counter[str] = Counter()
    index = folder / "model.safetensors.index.json"
    parts = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else set()
    absent = sorted(part for part in parts if not (folder / part).is_file())
    if absent:
        raise Failure(
            "bad_model",
            f"{folder} lacks {', '.join(absent)}, which {index.name} names.",
            "Download it again.",
        )
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as tensors:
                types.update(tensors.get_slice(name).get_dtype() for name in tensors.keys())  # noqa: SIM118 -- not a dict
        except (SafetensorError, OSError) as error:
            raise Failure(
                "bad_model",
                f"{path} is not a whole safetensors file: {error}.",
                "Download it again.",
            ) from error
    if not types:
        raise Failure(
            "bad_model",
            f"{folder} holds no safetensors file.",
            "Convert the weights to safetensors; pickled weights are not loaded.",
        )
    return {
        "hf": ".",
        "tokenizer": ".",
        "hf_form": f"{f'{layout}-quantized ' if layout else ''}{types.most_common(1)[0][0]} safetensors",
        **quantized,
    }


def gguf_type(path: Path) -> str:
    """Type of most weights of a GGUF; Failure `bad_model` if the file is not whole."""
    try:
        weights: Counter[str] = Counter()
        for tensor in GGUFReader(path).tensors:
            weights[tensor.tensor_type.name] += tensor.n_elements
        return weights.most_common(1)[0][0]
    except Exception as error:  # the reader raises whatever the bytes lead it to
        raise Failure(
            "bad_model",
            f"{path.name} is not a whole GGUF file: {type(error).__name__}: {error}.",
            "Download it again.",
        ) from error
