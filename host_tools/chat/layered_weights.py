"""The weights file of a chat model in pieces: matrices as a row of activations multiplies them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from edge.chat.layered import LayeredModel, StoredTensor
from host_tools.chat.graph import PAGE_BYTES
from host_tools.chat.llm_spec import LlmSpec
from host_tools.chat.rope import rotary_tables
from host_tools.chat.weights import FloatArray, Weights, whole


def write_weights(
    path: Path, spec: LlmSpec, weights: Weights, model: LayeredModel
) -> tuple[StoredTensor, ...]:
    """Write every tensor, each from a page on, and return where; raises OSError."""
    stored = []
    with path.open("wb") as file:
        for name, array in _tensors(spec, weights, model.decoder.context):
            file.write(b"\0" * (-file.tell() % PAGE_BYTES))
            stored.append(StoredTensor(name=name, shape=array.shape, offset=file.tell()))
            file.write(np.ascontiguousarray(array, model.dtype).data)
    return tuple(stored)


def _tensors(spec: LlmSpec, weights: Weights, context: int) -> Iterable[tuple[str, FloatArray]]:
    """Yield every tensor with its name; matrices are [inputs, outputs]."""
    embedding = "model.embed_tokens.weight"
    yield "embedding", whole(weights, embedding)
    cosines, sines = rotary_tables(spec.rope, spec.head_dim, context)
    yield "cosines", np.concatenate([cosines, cosines], axis=1)
    yield "sines", np.concatenate([-sines, sines], axis=1)
    for layer in range(spec.layers):
        below = f"model.layers.{layer}"
        joined = [f"{below}.self_attn.{part}_proj" for part in "qkv"]
        yield f"layers.{layer}.input_norm", whole(weights, f"{below}.input_layernorm.weight")
        parts = [whole(weights, f"{name}.weight") for name in joined]
        yield f"layers.{layer}.qkv", np.concatenate(parts).T
        if spec.qkv_bias:
            biases = [whole(weights, f"{name}.bias") for name in joined]
            yield f"layers.{layer}.qkv_bias", np.concatenate(biases)
        if spec.qk_norm:
            yield f"layers.{layer}.head_norm", _head_norm(spec, weights, f"{below}.self_attn")
        for name, source in (
            ("output", "self_attn.o_proj"),
            ("gate", "mlp.gate_proj"),
            ("up", "mlp.up_proj"),
            ("down", "mlp.down_proj"),
        ):
            yield f"layers.{layer}.{name}", whole(weights, f"{below}.{source}.weight").T
        yield f"layers.{layer}.mlp_norm", whole(weights, f"{below}.post_attention_layernorm.weight")
    yield "norm", whole(weights, "model.norm.weight")
    yield "head", whole(weights, embedding if spec.tied else "lm_head.weight").T


def _head_norm(spec: LlmSpec, weights: Weights, attention: str) -> FloatArray:
    """Return the scales of the norm of every head [1, N, 1, D]; those of values do not count."""
    query, key = (whole(weights, f"{attention}.{part}_norm.weight") for part in "qk")
    parts = (query, spec.heads), (key, spec.kv_heads), (np.ones_like(key), spec.kv_heads)
    every = np.concatenate([np.tile(scale, (count, 1)) for scale, count in parts])
    return every[None, :, None]
