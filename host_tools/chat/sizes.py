"""How large the weight file of a chat model becomes, from its config.json alone, to the byte.

The list of tensors is that of `host_tools.chat.decoder`, in its order; weights begin at pages.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from edge.chat.spec import Form
from host_tools.chat.graph import PAGE_BYTES
from host_tools.chat.linear import Precision as Packing
from host_tools.chat.llm_spec import LlmSpec
from host_tools.chat.quantize import block_size
from host_tools.chat.writer import INT4_OPSET, OPSETS

# What weights are stored as; "w8a8" is "int8" with activations that are rounded to int8 as well,
# whose few scales are inside the graph. So it is in memory: in the file of a graph for TensorRT 8,
# which rounds them itself, they are FP32.
Precision = Literal["fp32", "fp16", "int8", "int4", "w8a8"]

# Of int4: the matrix that gives the logits, which rounding costs most.
Head = Literal["int8", "same"]

OPERATOR_ROTATION_OPSET = 23  # from it on RotaryEmbedding, which takes tables of half the width
HALF_SCALES_OPSET = 19  # before it DequantizeLinear takes scales of FP32 alone


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightBytes:
    """Bytes of the weight file, and those of them that are read for every token.

    Of the embedding and the rotary tables a token needs a row; of all else everything.
    """

    file: int
    per_token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tensor:
    """bytes of one tensor; by_row: whether a token reads one row of it."""

    size: int
    by_row: bool = False


def weight_bytes(
    spec: LlmSpec,
    *,
    form: Form,
    precision: Precision,
    half: bool,
    context: int,
    head: Head = "same",
) -> WeightBytes:
    """Return what the writer would write; half: whether activations are FP16."""
    tensors = tuple(_Layout(spec, form, precision, half, context, head).tensors())
    padded = sum(-(-tensor.size // PAGE_BYTES) * PAGE_BYTES for tensor in tensors[:-1])
    return WeightBytes(
        file=padded + tensors[-1].size,
        per_token=sum(tensor.size for tensor in tensors if not tensor.by_row),
    )


class _Layout:
    """Lists the tensors of one way to write a model."""

    def __init__(
        self,
        spec: LlmSpec,
        form: Form,
        precision: Precision,
        half: bool,
        context: int,
        head: Head,
    ) -> None:
        self._spec = spec
        self._context = context
        self._packing: Packing = "float"
        self._opset = OPSETS[form]
        if precision in {"int8", "w8a8", "int4"}:
            self._packing = "int4" if precision == "int4" else "int8"
        if self._packing == "int4":
            self._opset = max(self._opset, INT4_OPSET)
        self._head: Packing = "int8" if (precision, head) == ("int4", "int8") else self._packing
        self._half = half
        self._float_bytes = 2 if half else 4
        self._table_bytes = 2 if half or precision != "fp32" else 4

    def tensors(self) -> Iterator[_Tensor]:
        spec = self._spec
        width = spec.head_dim // (2 if self._opset >= OPERATOR_ROTATION_OPSET else 1)
        rotations = _Tensor(size=self._context * width * self._float_bytes, by_row=True)
        yield from (rotations, rotations)
        shares_table = (
            spec.tied and self._packing == "float" and self._float_bytes == self._table_bytes
        )
        table = spec.vocabulary * spec.hidden * self._table_bytes
        yield _Tensor(size=table, by_row=not shares_table)
        for _ in range(spec.layers):
            yield from self._layer()
        yield self._floats(spec.hidden)
        if not shares_table:
            yield from self._linear(spec.hidden, (spec.vocabulary,), packing=self._head)

    def _layer(self) -> Iterator[_Tensor]:
        spec = self._spec
        query, key = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        yield self._floats(spec.hidden)
        yield from self._linear(spec.hidden, (query, key, key), bias=spec.qkv_bias)
        if spec.qk_norm:
            yield from (self._floats(spec.head_dim), self._floats(spec.head_dim))
        yield from self._linear(query, (spec.hidden,), bias=spec.output_bias)
        yield self._floats(spec.hidden)
        inner = spec.intermediate
        yield from self._linear(spec.hidden, (inner, inner), bias=spec.mlp_bias)
        yield from self._linear(inner, (spec.hidden,), bias=spec.mlp_bias)

    def _linear(
        self,
        inputs: int,
        outputs: tuple[int, ...],
        *,
        bias: bool = False,
        packing: Packing | None = None,
    ) -> Iterator[_Tensor]:
        packing = packing or self._packing
        count = sum(outputs)
        block = block_size(inputs)
        is_even = all(size % 2 == 0 for size in outputs)
        if packing == "float":
            yield self._floats(inputs * count)
        elif packing == "int4" and block is not None and is_even:
            yield _Tensor(size=inputs * count // 2)
            yield self._floats(inputs // block * count)
        else:
            yield _Tensor(size=inputs * count)
            yield _Tensor(size=count)  # zero points
            has_half_scales = self._half and self._opset >= HALF_SCALES_OPSET
            yield _Tensor(size=count * (2 if has_half_scales else 4))
        if bias:
            yield self._floats(count)

    def _floats(self, count: int) -> _Tensor:
        return _Tensor(size=count * self._float_bytes)
