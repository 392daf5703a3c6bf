"""Folders of Hugging Face with a tokenizer and a BERT of a few kilobytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers

from tests.encoders import VOCABULARY, tokenizer_json

_PACKAGE = "sentence_transformers.models"
_STEPS = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))


def bert_config(**changes: Any) -> transformers.BertConfig:
    settings = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 20,
        "initializer_range": 0.5,  # so that different texts get different answers
    }
    return transformers.BertConfig(**{**settings, **changes})


def save(model: Any, folder: Path) -> Any:
    """Write the folder of a model that is sent texts, and return the model to compare with."""
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(tokenizer_json())
    special = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]"}
    config = {f"{name}_token": token for name, token in special.items()}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 18}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return model.eval()


def save_sentence_encoder(
    folder: Path, *, max_tokens: int, **changes: Any
) -> transformers.BertModel:
    """Write a folder of sentence-transformers: the mean over the mask, normalised.

    changes: of the configuration of its BERT.
    """
    module = save(transformers.BertModel(bert_config(**changes)), folder)
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"{_PACKAGE}.{kind}"}
        for i, (path, kind) in enumerate(_STEPS)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = json.dumps({"pooling_mode_mean_tokens": True})
    (folder / "1_Pooling" / "config.json").write_text(pooling)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": max_tokens}))
    return module
