"""Tiny chat models with random weights that have all that talks: tokenizer, template, defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.chat_models import make_model
from tests.edge.chat.made_tokenizers import byte_level
from tests.edge.chat.templates import ALL


def make_talking_folder(folder: Path, family: str = "llama", **changes: Any) -> Path:
    """Write a Hugging Face folder that answers with random tokens in the manner of ChatML."""
    import transformers

    library = byte_level()
    ids = {name: library.token_to_id(name) for name in ("<|begin_of_text|>", "<|im_end|>")}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=library, bos_token="<|begin_of_text|>", eos_token="<|im_end|>"
    )
    tokenizer.chat_template = ALL["qwen2"]
    tokenizer.save_pretrained(folder)
    model = make_model(
        family,
        vocab_size=library.get_vocab_size(),
        bos_token_id=ids["<|begin_of_text|>"],
        eos_token_id=ids["<|im_end|>"],
        **changes,
    )
    model.save_pretrained(folder, safe_serialization=True)
    return folder


def answer_of_transformers(
    folder: Path, messages: list[dict[str, str]], count: int
) -> tuple[str, int]:
    """Return the likeliest answer in at most count tokens, and the tokens of its prompt."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    made = model.generate(
        input_ids=prompt["input_ids"],
        attention_mask=prompt["attention_mask"],
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=model.config.eos_token_id,
    )
    length = prompt["input_ids"].shape[1]
    return tokenizer.decode(made[0, length:], skip_special_tokens=True), length
