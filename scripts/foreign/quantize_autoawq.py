"""Quantize a Hugging Face folder by AutoAWQ; writes the layout awq (its GEMM form: 4 bits, with zero points).

    quantize_autoawq.py SOURCE TARGET SAMPLES.json '{"bits": 4, "group_size": 128, "clip": true, "seed": 0, ...}'

Runs in envs/autoawq.txt. SAMPLES.json holds lists of token ids, all of one length.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from awq import AutoAWQForCausalLM
from awq.quantize.quantizer import AwqQuantizer
from transformers import set_seed


@contextmanager
def copied_weights(module: torch.nn.Module) -> Iterator[None]:
    """Let the module's state_dict give copies.

    The search for scales keeps `v.cpu()` of each weight, tries scales on the weights in place, and restores what it
    kept. On a CPU `.cpu()` is the weight itself, so that every try spoils it: the model comes out broken (release 0.2.9).
    """
    aliases = module.state_dict
    module.state_dict = lambda *args, **kwargs: {
        name: value.clone() for name, value in aliases(*args, **kwargs).items()
    }
    try:
        yield
    finally:
        del module.state_dict


def search_on_copies() -> None:
    search = AwqQuantizer._compute_best_scale

    def on_copies(
        self: AwqQuantizer,
        x: Any,
        w_mean: Any,
        x_mean: Any,
        module: torch.nn.Module,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        with copied_weights(module):
            return search(self, x, w_mean, x_mean, module, *args, **kwargs)

    AwqQuantizer._compute_best_scale = on_copies


def quantize(source: Path, target: Path, samples: list[list[int]], asked: dict[str, Any]) -> None:
    if "rope_theta" not in json.loads((source / "config.json").read_text()):
        raise SystemExit(
            "config.json has no rope_theta: transformers 5 wrote it for itself alone, and AutoAWQ's last release reads it with version 4"
        )
    search_on_copies()
    set_seed(asked["seed"])
    accelerated = torch.cuda.is_available()
    model = AutoAWQForCausalLM.from_pretrained(
        str(source),
        device_map="auto" if accelerated else "cpu",
        safetensors=True,
        torch_dtype=torch.float16 if accelerated else torch.float32,
        trust_remote_code=asked["trust_remote_code"],
    )
    config = {
        "zero_point": True,
        "q_group_size": asked["group_size"],
        "w_bit": asked["bits"],
        "version": "GEMM",
    }
    length = len(samples[0])
    model.quantize(
        None,
        quant_config=config,
        calib_data=samples,
        max_calib_samples=len(samples),
        max_calib_seq_len=length,
        apply_clip=asked["clip"],
    )
    model.model.to(torch.float16)  # the type that the layout's scales have
    model.save_quantized(str(target))


if __name__ == "__main__":
    quantize(
        Path(sys.argv[1]),
        Path(sys.argv[2]),
        json.loads(Path(sys.argv[3]).read_text()),
        json.loads(sys.argv[4]),
    )
