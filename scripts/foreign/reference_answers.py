"""What an unquantized model says in Transformers: how likely it finds some passages, and its greedy answers to some prompts.

usage: reference_answers.py MODEL_FOLDER PASSAGES.json PROMPTS.json ANSWER_TOKENS TARGET.json [trust]
Runs wherever torch and transformers are. PASSAGES.json holds lists of token ids, PROMPTS.json texts; both may be empty lists.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig


@torch.inference_mode()
def log_probs(model: Any, ids: list[int]) -> list[float]:
    """The natural logarithm of the probability of each id but the first, after those before it."""
    scores = model(torch.tensor([ids], device=model.device)).logits[0, :-1].float()
    told: list[float] = (
        torch.log_softmax(scores, -1)
        .gather(1, torch.tensor(ids[1:], device=scores.device)[:, None])[:, 0]
        .tolist()
    )
    return told


@torch.inference_mode()
def answer(model: Any, tokenizer: Any, prompt: str, length: int) -> str:
    """Greedy, whatever sampling the model's authors recommend; it ends where they say that it ends."""
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    ).to(model.device)
    end = model.generation_config.eos_token_id or tokenizer.eos_token_id
    greedy = GenerationConfig(
        max_new_tokens=length,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
    )
    said: str = tokenizer.decode(
        model.generate(**ids, generation_config=greedy)[0, ids["input_ids"].shape[1] :],
        skip_special_tokens=True,
    )
    return said


def main(folder: str, passages: str, prompts: str, length: str, target: str, trust: bool) -> None:
    accelerated = torch.cuda.is_available()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
    # On a CPU in 32 bits: what 16 would round away belongs to the backends' account, not to the reference's.
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto" if accelerated else torch.float32, trust_remote_code=trust
    )
    model.to("cuda" if accelerated else "cpu").eval()
    told, said = [], []
    texts, questions = (json.loads(Path(path).read_text()) for path in (passages, prompts))
    for number, ids in enumerate(texts, 1):
        told.append(log_probs(model, ids))
        print(f"passage {number} of {len(texts)}", flush=True)
    for number, prompt in enumerate(questions, 1):
        said.append(answer(model, tokenizer, prompt, int(length)))
        print(f"answer {number} of {len(questions)}", flush=True)
    Path(target).write_text(
        json.dumps(
            {"log_probs": told, "answers": said, "dtype": str(model.dtype).removeprefix("torch.")}
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:6], trust=sys.argv[6:] == ["trust"])
