"""The demo model as a Hugging Face folder, which transformers and the kit read alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from edge.files import storage_errors
from host_tools.chat.demo.tokens import CHAT_TEMPLATE, END_OF_TEXT, END_OF_TURN


def write_folder(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a model, its tokenizer with the chat template, and what ends an answer.

    folder is made if it is missing. Raises StorageError.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it so
    end, stop = (tokenizer.token_to_id(token) for token in (END_OF_TEXT, END_OF_TURN))
    model.generation_config.eos_token_id = [stop, end]
    model.generation_config.pad_token_id = end
    # By hand: the name that transformers 5 gives the class is unknown to transformers 4.
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TURN,
        "pad_token": END_OF_TEXT,
        "model_max_length": model.config.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    with storage_errors("write", folder):
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder)
        tokenizer.save(str(folder / "tokenizer.json"))
        content = msgspec.json.format(msgspec.json.encode(tokenizer_config), indent=2)
        (folder / "tokenizer_config.json").write_bytes(content)
