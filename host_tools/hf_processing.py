"""What a Hugging Face folder says beyond the weights: its tokenizer, and the names of classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from calibration.processing import Processing
from edge.classes import Classes
from edge.text import MAX_TOKENS, TextPreprocessing
from host_tools.errors import FOREIGN_ERRORS

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
# Their positions begin behind the padding's, so that two of them are no place for a token.
SHIFTED_POSITIONS = frozenset(
    {"camembert", "data2vec-text", "longformer", "mpnet", "roberta", "xlm-roberta"}
)


def text_processing(
    root: Path,
    inputs: tuple[str, ...],
    config: Any,
    *,
    declared_tokens: int | None,
    classes: Classes | None,
    embedding: str | None,
) -> Processing:
    """Return how texts become these inputs, as transformers itself would tokenize them.

    declared_tokens: a limit from elsewhere. There is no text in the result for a folder whose
    tokenizer is missing, exists in Python only, or pads at the start.
    """
    plain = Processing(classes=classes, embedding=embedding)
    tokenizer = _tokenizer(root)
    if tokenizer is None or tokenizer.padding_side != "right":
        return plain
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and config.model_type in SHIFTED_POSITIONS:
        positions -= 2
    limits = (declared_tokens, tokenizer.model_max_length, positions, MAX_TOKENS)
    pad = tokenizer.pad_token_id
    text = TextPreprocessing(
        tokenizer="tokenizer.json",
        ids="input_ids",
        mask="attention_mask" if "attention_mask" in inputs else None,
        types="token_type_ids" if "token_type_ids" in inputs else None,
        max_tokens=min(int(limit) for limit in limits if limit is not None),
        truncation="start" if tokenizer.truncation_side == "left" else "end",
        pad=(getattr(config, "pad_token_id", None) or 0) if pad is None else pad,
    )
    content = tokenizer.backend_tokenizer.to_str().encode()
    return Processing(text=text, tokenizer=content, classes=classes, embedding=embedding)


def classes_from_config(config: Any, output: str) -> Classes | None:
    """Return the classes of a classifier's logits; None for regression and several labels a row."""
    names = getattr(config, "id2label", None) or {}
    if len(names) < 2 or getattr(config, "problem_type", None) not in {
        None,
        "single_label_classification",
    }:
        return None
    labels = tuple(str(names[number]) for number in sorted(names))
    return Classes(output=output, labels=labels, softmax=True)


def _tokenizer(root: Path) -> Any:
    if not any(next(root.glob(pattern), None) for pattern in TOKENIZER_FILES):
        return None
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            root, local_files_only=True, trust_remote_code=False
        )
    except FOREIGN_ERRORS:
        return None
    return tokenizer if hasattr(tokenizer, "backend_tokenizer") else None
