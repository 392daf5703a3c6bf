"""Random weights of a Llama-3-8B shape, the same for TensorRT's decoder and for its peers."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from host_tools.chat.rope import Rope, rotary_tables

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}
LANES, CHUNK, CAPACITY = 8, 512, 1024
_POOL = 1 << 26


class RandomWeights:
    """Tensors in fp16, cut from one pool of normal numbers, each from another place."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._pool = (rng.standard_normal(_POOL, np.float32) * 0.02).astype(np.float16)
        dim = CONFIG["hidden_size"] // CONFIG["num_attention_heads"]
        cosines, sines = rotary_tables(Rope(theta=CONFIG["rope_theta"]), dim, CAPACITY)
        self._tables = {
            "cosines": np.concatenate([cosines, cosines], axis=1).astype(np.float16),
            "sines": np.concatenate([-sines, sines], axis=1).astype(np.float16),
        }

    def tensor(self, name: str) -> np.ndarray:
        """Return a tensor by its name in a layered model; matrices are [inputs, outputs]."""
        if name in self._tables:
            return self._tables[name]
        shape = shape_of(name.split(".")[-1])
        if len(shape) == 1:
            return np.ones(shape, np.float16)
        size, begin = int(np.prod(shape)), zlib.crc32(name.encode()) % _POOL
        count = -(-(begin + size) // _POOL)
        return np.tile(self._pool, count)[begin : begin + size].reshape(shape)


def shape_of(kind: str) -> tuple[int, ...]:
    """Return the shape of a tensor of a layered model; vectors are those of norms."""
    hidden, inner, vocabulary = (
        CONFIG[name] for name in ("hidden_size", "intermediate_size", "vocab_size")
    )
    dim = hidden // CONFIG["num_attention_heads"]
    width = (CONFIG["num_attention_heads"] + 2 * CONFIG["num_key_value_heads"]) * dim
    return {
        "embedding": (vocabulary, hidden),
        "head": (hidden, vocabulary),
        "qkv": (hidden, width),
        "output": (hidden, hidden),
        "gate": (hidden, inner),
        "up": (hidden, inner),
        "down": (inner, hidden),
    }.get(kind, (hidden,))


def text(count: int) -> np.ndarray:
    """Return tokens to compare logits on."""
    return np.random.default_rng(5).integers(0, CONFIG["vocab_size"], count)
