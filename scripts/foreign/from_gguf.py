"""GGUF to a Hugging Face folder (safetensors, tokenizer, chat template), bfloat16. Runs in envs/vllm.txt.

usage: from_gguf.py FILE.gguf FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig


def convert(source: Path, target: Path) -> None:
    """Dequantize with transformers' own reader and save; the weights keep the rounding of the GGUF's quantization."""
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    loaded = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.bfloat16
    )
    # save_pretrained refuses a model that remembers its GGUF, so its weights move to one that does not.
    forgotten = ("quantization_config", "_name_or_path", "transformers_version")
    config = type(loaded.config)(
        **{name: value for name, value in loaded.config.to_dict().items() if name not in forgotten}
    )
    config.dtype = torch.bfloat16
    config.architectures = [type(loaded).__name__]
    with torch.device("meta"):
        model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    model.save_pretrained(target)
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(target)
    please_older_readers(target)


def please_older_readers(folder: Path) -> None:
    """Keys that transformers 4, which some backends pin, looks for where version 5 no longer writes them."""
    config = json.loads((folder / "config.json").read_text())
    config["rope_theta"] = (config.get("rope_parameters") or config)["rope_theta"]
    config["torch_dtype"] = "bfloat16"
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    template = folder / "chat_template.jinja"
    if template.exists():
        tokenizer["chat_template"] = template.read_text()
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                name: value
                for name, value in tokenizer.items()
                if name not in ("is_local", "local_files_only", "backend")
            },
            indent=2,
        )
    )
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
