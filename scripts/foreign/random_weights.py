"""A checkpoint of a published shape with random weights. Runs in envs/vllm.txt, or wherever torch and transformers are.

usage: random_weights.py CONFIG_JSON DTYPE TOKENIZER_FOLDER FOLDER [awq]
Matrices are normal with standard deviation 0.02, norms are one, biases zero; shards hold at most 4 GB. With `awq` the layers' matrices
are random 4-bit ones in the layout that AutoAWQ writes (version gemm, zero points, groups of 128).
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

SHARD = 4 << 30
GROUP = 128
AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def make(
    architecture: dict[str, object],
    dtype: torch.dtype,
    tokenizer: Path,
    folder: Path,
    awq: bool = False,
) -> None:
    """Write the shape's tensors shard by shard: never more than one shard in memory."""
    folder.mkdir(parents=True)
    eos, bos = pad_tokenizer(tokenizer, folder, int(str(architecture["vocab_size"])))
    kind = str(architecture.pop("model_type"))
    config = AutoConfig.for_model(
        kind, **architecture | {"eos_token_id": eos, "bos_token_id": bos, "dtype": dtype}
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    if awq:
        saved = json.loads((folder / "config.json").read_text()) | {"quantization_config": AWQ}
        (folder / "config.json").write_text(json.dumps(saved, indent=1))
    # Billions of draws take minutes on a CPU, seconds on a GPU; the two draw other numbers.
    generator = torch.Generator("cuda" if torch.cuda.is_available() else "cpu").manual_seed(0)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    shards: list[list[tuple[str, torch.Tensor]]] = [[]]
    for name, tensor in parts(model.state_dict(), awq):
        if name in tied:
            continue
        if sum(other.nbytes for _, other in shards[-1]) + tensor.nbytes > SHARD and shards[-1]:
            shards.append([])
        shards[-1].append((name, tensor))
    index = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(
            {name: draw(name, tensor, generator) for name, tensor in shard},
            folder / file,
            metadata={"format": "pt"},
        )
        index |= {name: file for name, _ in shard}
    total = sum(tensor.nbytes for shard in shards for _, tensor in shard)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    )


def parts(state: dict[str, torch.Tensor], awq: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and form (on no device) of each tensor; under `awq` a layer's matrix of N outputs and K inputs is three of them:
    qweight [K, N/8] and qzeros [K/128, N/8] of packed 4-bit numbers, scales [K/128, N]."""
    for name, tensor in state.items():
        if not (awq and ".layers." in name and name.endswith("_proj.weight")):
            yield name, tensor
            continue
        outputs, inputs = tensor.shape
        forms = {
            "qweight": ((inputs, outputs // 8), torch.int32),
            "qzeros": ((inputs // GROUP, outputs // 8), torch.int32),
            "scales": ((inputs // GROUP, outputs), torch.float16),
        }
        for part, (shape, kind) in forms.items():
            yield name.removesuffix("weight") + part, torch.empty(shape, dtype=kind, device="meta")


def draw(name: str, form: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    shape, dtype = form.shape, form.dtype
    if name.endswith("qweight"):
        return (
            torch.empty(shape, dtype=dtype, device=generator.device)
            .random_(-(2**31), 2**31 - 1, generator=generator)
            .cpu()
        )
    if name.endswith("qzeros"):
        return torch.full(
            shape, -0x77777778, dtype=dtype
        )  # 0x88888888: eight times the middle of 0 to 15
    if name.endswith("scales"):
        # Uniform 4-bit numbers deviate by 4.6 from their middle; so a layer neither grows nor shrinks what goes through it.
        return torch.full(shape, 0.9 / (4.6 * (shape[0] * GROUP) ** 0.5), dtype=dtype)
    if len(shape) < 2:
        return (
            torch.zeros(shape, dtype=dtype)
            if name.endswith("bias")
            else torch.ones(shape, dtype=dtype)
        )
    return (
        torch.empty(shape, dtype=dtype, device=generator.device)
        .normal_(0, 0.02, generator=generator)
        .cpu()
    )


def pad_tokenizer(source: Path, folder: Path, size: int) -> tuple[int, int]:
    """Copy a tokenizer and fill its vocabulary up to `size`; gives the ids of its end and begin tokens."""
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    taken = set(vocabulary.values()) | {token["id"] for token in tokenizer.get("added_tokens", [])}
    if len(taken) > size:
        raise SystemExit(
            f"the tokenizer has {len(taken)} entries, the architecture's vocab_size is {size}: choose a smaller tokenizer"
        )
    for number in set(range(size)) - taken:
        vocabulary[f"<|filler_{number}|>"] = number
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copy(source / name, folder / name)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    ids = vocabulary | {
        token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])
    }
    eos = ids[settings["eos_token"]]
    return eos, ids.get(settings.get("bos_token"), eos)


if __name__ == "__main__":
    make(
        json.loads(sys.argv[1]),
        getattr(torch, sys.argv[2]),
        Path(sys.argv[3]),
        Path(sys.argv[4]),
        sys.argv[5:] == ["awq"],
    )
