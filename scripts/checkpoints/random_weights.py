"""A checkpoint of a published shape with random weights. Runs in envs/vllm.txt, or wherever torch and transformers are.

usage: random_weights.py CONFIG_JSON DTYPE TOKENIZER_FOLDER FOLDER
Matrices are normal with standard deviation 0.02, norms are one, biases zero; shards hold at most 4 GB.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

SHARD = 4 << 30
TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def make(architecture: dict[str, object], dtype: torch.dtype, tokenizer: Path, folder: Path) -> None:
    """Write the shape's tensors shard by shard: never more than one shard in memory."""
    folder.mkdir(parents=True)
    eos, bos = pad_tokenizer(tokenizer, folder, int(str(architecture["vocab_size"])))
    kind = str(architecture.pop("model_type"))
    config = AutoConfig.for_model(kind, **architecture | {"eos_token_id": eos, "bos_token_id": bos, "dtype": dtype})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    # Billions of draws take minutes on a CPU, seconds on a GPU; the two draw other numbers.
    generator = torch.Generator("cuda" if torch.cuda.is_available() else "cpu").manual_seed(0)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    shards: list[list[tuple[str, torch.Tensor]]] = [[]]
    for name, tensor in model.state_dict().items():
        if name in tied:
            continue
        if sum(other.numel() for _, other in shards[-1]) * dtype.itemsize + tensor.numel() * dtype.itemsize > SHARD and shards[-1]:
            shards.append([])
        shards[-1].append((name, tensor))
    index = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({name: draw(name, tensor.shape, dtype, generator) for name, tensor in shard}, folder / file, metadata={"format": "pt"})
        index |= {name: file for name, _ in shard}
    total = sum(tensor.numel() for shard in shards for _, tensor in shard) * dtype.itemsize
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": index}))


def draw(name: str, shape: torch.Size, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    if len(shape) < 2:
        return torch.zeros(shape, dtype=dtype) if name.endswith("bias") else torch.ones(shape, dtype=dtype)
    return torch.empty(shape, dtype=dtype, device=generator.device).normal_(0, 0.02, generator=generator).cpu()


def pad_tokenizer(source: Path, folder: Path, size: int) -> tuple[int, int]:
    """Copy a tokenizer and fill its vocabulary up to `size`; gives the ids of its end and begin tokens."""
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    taken = set(vocabulary.values()) | {token["id"] for token in tokenizer.get("added_tokens", [])}
    if len(taken) > size:
        raise SystemExit(f"the tokenizer has {len(taken)} entries, the architecture's vocab_size is {size}: choose a smaller tokenizer")
    for number in set(range(size)) - taken:
        vocabulary[f"<|filler_{number}|>"] = number
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copy(source / name, folder / name)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    ids = vocabulary | {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}
    eos = ids[settings["eos_token"]]
    return eos, ids.get(settings.get("bos_token"), eos)


if __name__ == "__main__":
    make(json.loads(sys.argv[1]), getattr(torch, sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
