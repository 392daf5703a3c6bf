"""A sentence encoder and its tokenizer, kilobytes each, and what they must give by numpy."""

from __future__ import annotations

import string
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from edge.spec import Profile, ShapeRange, TensorSpec
from edge.text import TextPreprocessing
from tests.bundles import Parts, parts_of
from tests.models import model_from_nodes

WIDTH = 6
MAX_ROWS, MAX_TOKENS = 4, 16
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = ("the", "cat", "sat", "on", "mat", "dog", "ran", "far", "##s", "##ing")
VOCABULARY = (*SPECIAL, *WORDS, *string.ascii_lowercase)
INPUTS = tuple(
    TensorSpec(name=name, datatype="INT64", shape=("batch", "tokens"))
    for name in ("input_ids", "attention_mask")
)
OUTPUTS = (
    TensorSpec(name="embedding", datatype="FP32", shape=("batch", WIDTH)),
    TensorSpec(name="hidden", datatype="FP32", shape=("batch", "tokens", WIDTH)),
)
_BOUNDS = ShapeRange(min=(1, 2), opt=(1, 8), max=(MAX_ROWS, MAX_TOKENS))
PROFILE = Profile(ranges={spec.name: _BOUNDS for spec in INPUTS})
TEXT = TextPreprocessing(
    tokenizer="encoder/tokenizer.json",
    ids="input_ids",
    mask="attention_mask",
    max_tokens=MAX_TOKENS,
)
TABLE = np.random.default_rng(0).normal(size=(len(VOCABULARY), WIDTH)).astype(np.float32)


def tokenizer_json() -> bytes:
    """Return a WordPiece tokenizer in the manner of BERT's."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    numbers = {word: number for number, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer.to_str().encode()


def ids_of(*words: str) -> list[int]:
    """Return the tokens of words that are in the vocabulary, with those around them."""
    return [2, *(VOCABULARY.index(word) for word in words), 3]


def encoder_model() -> onnx.ModelProto:
    """Return the mean of a table's rows over the mask, normalised; and the rows themselves."""
    return model_from_nodes(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["hidden"]),
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "last"], ["weights"]),
            helper.make_node("Mul", ["hidden", "weights"], ["kept"]),
            helper.make_node("ReduceSum", ["kept", "tokens"], ["total"], keepdims=0),
            helper.make_node("ReduceSum", ["mask", "tokens"], ["count"], keepdims=1),
            helper.make_node("Div", ["total", "count"], ["mean"]),
            helper.make_node("ReduceL2", ["mean"], ["length"], axes=[1], keepdims=1),
            helper.make_node("Div", ["mean", "length"], ["embedding"]),
        ],
        [
            helper.make_tensor_value_info(spec.name, TensorProto.INT64, list(spec.shape))
            for spec in INPUTS
        ],
        [
            helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, list(spec.shape))
            for spec in OUTPUTS
        ],
        {"table": TABLE, "last": np.array([-1]), "tokens": np.array([1])},
    )


def vector_of(ids: Sequence[int]) -> np.ndarray:
    """Return the embedding of one text."""
    mean = TABLE[list(ids)].astype(np.float64).mean(axis=0)
    return mean / np.sqrt((mean**2).sum())


def encoder_parts(**changes: object) -> Parts:
    """Return the Manifest of a bundle that serves "encoder" 1, and its files by name."""
    ids = np.array([ids_of("cat")])
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    want = {"embedding": vector_of(ids[0])[None].astype(np.float32), "hidden": TABLE[ids]}
    values: dict[str, object] = {
        "inputs": INPUTS,
        "outputs": OUTPUTS,
        "profile": PROFILE,
        "text": TEXT,
        "embedding": "embedding",
    }
    manifest, files = parts_of("encoder", encoder_model(), feeds, want, **{**values, **changes})
    return manifest, {**files, TEXT.tokenizer: tokenizer_json()}
