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
