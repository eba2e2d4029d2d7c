"""Quantize a Hugging Face folder by AWQ as llm-compressor does it; writes the layout compressed-tensors.

    quantize_llmcompressor.py SOURCE TARGET SAMPLES.json '{"bits": 4, "group_size": 128, "symmetric": false, "grid": 20, "seed": 0, ...}'

Runs in envs/llmcompressor.txt, which has llm-compressor and transformers. SAMPLES.json holds lists of token ids.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.awq import AWQModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from transformers import AutoModelForCausalLM, set_seed


def quantize(source: Path, target: Path, samples: list[list[int]], asked: dict[str, Any]) -> None:
    if not torch.accelerator.is_available():
        # Release 0.14.0.1 pins memory whatever there is to transfer it to, and fails where there is nothing.
        IntermediatesCache.pin_memory = lambda *_args, **_kwargs: None
    set_seed(asked["seed"])
    # Without an accelerator, arithmetic in 16 bits is emulated by many CPUs and several times slower.
    model = AutoModelForCausalLM.from_pretrained(
        source,
        dtype="auto" if torch.accelerator.is_available() else torch.float32,
        trust_remote_code=asked["trust_remote_code"],
    )
    weights = QuantizationArgs(
        num_bits=asked["bits"],
        type="int",
        symmetric=asked["symmetric"],
        strategy="group",
        group_size=asked["group_size"],
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    recipe = [
        AWQModifier(config_groups={"group_0": scheme}, ignore=["lm_head"], n_grid=asked["grid"])
    ]
    blocks = Dataset.from_list(
        [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in samples]
    )
    oneshot(
        model=model,
        dataset=blocks,
        recipe=recipe,
        max_seq_length=len(samples[0]),
        num_calibration_samples=len(samples),
        shuffle_calibration_samples=False,
    )
    model.to(torch.bfloat16 if asked["dtype"] == "bfloat16" else torch.float16)
    model.save_pretrained(target, save_compressed=True)


if __name__ == "__main__":
    quantize(
        Path(sys.argv[1]),
        Path(sys.argv[2]),
        json.loads(Path(sys.argv[3]).read_text()),
        json.loads(sys.argv[4]),
    )
