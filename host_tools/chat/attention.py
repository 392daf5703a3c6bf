"""Attention over the cache, in each form of graph; see `edge.chat.spec` for the caches.

In shapes: B lanes, H query heads, K heads of keys and values, G = H / K, S new tokens, T positions
of the cache, D head_dim.
"""

from __future__ import annotations

import math

from edge.chat.spec import Form
from host_tools.chat.llm_spec import LlmSpec
from host_tools.chat.positions import Positions

MAX_LENGTH = 2**31 - 1  # TensorRT 8 reads lengths as INT32


def cache_shape(form: Form, spec: LlmSpec) -> tuple[int | str, ...]:
    """Return the shape of a cache input."""
    if form == "prefix":
        return ("prefix", "lanes", spec.kv_heads, spec.head_dim)
    length = "past" if form == "concat" else "capacity"
    return ("lanes", spec.kv_heads, length, spec.head_dim)


def cache_output_shape(form: Form, spec: LlmSpec) -> tuple[int | str, ...]:
    """Return the shape of a cache output."""
    if form == "prefix":
        return ("tokens", "lanes", spec.kv_heads, spec.head_dim)
    if form == "concat":
        return ("lanes", spec.kv_heads, "total", spec.head_dim)
    return cache_shape(form, spec)


def add_attention(positions: Positions, layer: int, query: str, key: str, value: str) -> str:
    """Add attention of one layer, and its cache outputs; return the heads' results [B, H, S, D].

    query: [B, H, S, D]. key, value: [B, K, S, D], of the new tokens; query and key are rotated.
    """
    window = positions.spec.windows[layer]
    if positions.form == "prefix":
        return _over_prefix(positions, layer, query, key, value, positions.masks(window))
    graph = positions.graph
    keys, values = (
        _updated(positions, f"{kind}_{layer}", new)
        for kind, new in (("key", key), ("value", value))
    )
    (mask,) = positions.masks(window)
    name = f"layers.{layer}.attention"
    if positions.form == "scatter":
        return graph.add("Attention", query, keys, values, mask, name=name)
    columns = graph.add("Transpose", keys, name=f"{name}.columns", perm=(0, 1, 3, 2))
    grouped = _grouped(positions, query, name)
    scores = graph.add("MatMul", grouped, columns, name=f"{name}.products")
    masked = graph.add("Add", scores, mask, name=f"{name}.masked")
    shares = graph.add("Softmax", masked, name=f"{name}.shares", axis=-1)
    return _ungrouped(positions, graph.add("MatMul", shares, values, name=f"{name}.mixed"), name)


def _updated(positions: Positions, cache: str, new: str) -> str:
    """Add the cache with the new tokens in it, which is an output, and return it."""
    graph = positions.graph
    if positions.form == "concat":
        return graph.add("Concat", cache, new, name=f"{cache}_out", axis=2)
    start = positions.lanes_start
    return graph.add("TensorScatter", cache, new, start, name=f"{cache}_out", axis=-2)


def _over_prefix(
    positions: Positions, layer: int, query: str, key: str, value: str, masks: tuple[str, ...]
) -> str:
    """Two parts, cached and new positions, under one softmax: the cache is read where it is."""
    graph, name = positions.graph, f"layers.{layer}.attention"
    for kind, new in (("key", key), ("value", value)):
        graph.add("Transpose", new, name=f"{kind}_{layer}_new", perm=(2, 0, 1, 3))
    grouped = _grouped(positions, query, name)
    parts = []
    for part, keys, perm, mask in (
        ("cached", f"key_{layer}", (1, 2, 3, 0), masks[0]),
        ("new", key, (0, 1, 3, 2), masks[1]),
    ):
        columns = graph.add("Transpose", keys, name=f"{name}.{part}.columns", perm=perm)
        scores = graph.add("MatMul", grouped, columns, name=f"{name}.{part}.products")
        parts.append(graph.add("Add", scores, mask, name=f"{name}.{part}.masked"))
    scores = graph.add("Concat", *parts, name=f"{name}.scores", axis=-1)
    shares = graph.add("Softmax", scores, name=f"{name}.shares", axis=-1)
    border, zero, far, axis = positions.prefix_end, *map(graph.ints, (0, MAX_LENGTH, 3))
    of_cached = graph.add("Slice", shares, zero, border, axis, name=f"{name}.cached.shares")
    of_new = graph.add("Slice", shares, border, far, axis, name=f"{name}.new.shares")
    cached = graph.add("Transpose", f"value_{layer}", name=f"{name}.cached", perm=(1, 2, 0, 3))
    old = graph.add("MatMul", of_cached, cached, name=f"{name}.cached.mixed")
    new = graph.add("MatMul", of_new, value, name=f"{name}.new.mixed")
    return _ungrouped(positions, graph.add("Add", old, new, name=f"{name}.mixed"), name)


def _grouped(positions: Positions, query: str, name: str) -> str:
    """Put the queries that share a key below each other, [B, K, G * S, D], and scale them.

    In this order, as ONNX Runtime takes a factor into the product that follows it directly.
    """
    graph, spec = positions.graph, positions.spec
    if spec.heads != spec.kv_heads:
        shape = graph.ints(0, spec.kv_heads, -1, spec.head_dim)
        query = graph.add("Reshape", query, shape, name=f"{name}.grouped")
    scale = graph.number(1 / math.sqrt(spec.head_dim))
    return graph.add("Mul", query, scale, name=f"{name}.scaled")


def _ungrouped(positions: Positions, mixed: str, name: str) -> str:
    graph, spec = positions.graph, positions.spec
    if spec.heads == spec.kv_heads:
        return mixed
    shape = graph.ints(0, spec.heads, -1, spec.head_dim)
    return graph.add("Reshape", mixed, shape, name=name)
