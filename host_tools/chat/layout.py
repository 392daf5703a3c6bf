"""Which tensors a checkpoint of a chat model must hold, checked before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from host_tools.chat.llm_spec import LlmSpec
from host_tools.errors import ExportError

Shape = tuple[int, ...]

HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"
# Buffers that old checkpoints carry and no layer reads.
COMPUTED = ("rotary_emb.inv_freq",)


def expected_shapes(spec: LlmSpec) -> dict[str, Shape]:
    """Return the shape of every tensor that the writer reads, by its name in the checkpoint."""
    table = (spec.vocabulary, spec.hidden)
    shapes: dict[str, Shape] = {EMBEDDING: table, "model.norm.weight": (spec.hidden,)}
    if not spec.tied:
        shapes[HEAD] = table
    for layer in range(spec.layers):
        for name, shape in _layer_shapes(spec).items():
            shapes[f"model.layers.{layer}.{name}"] = shape
    return shapes


def check_layout(spec: LlmSpec, found: Mapping[str, Shape], folder: Path) -> None:
    """Raise ExportError unless a checkpoint holds what the config promises, and nothing else.

    A tensor that no layer reads means that the model computes more than would be written.
    """
    expected = expected_shapes(spec)
    missing = [name for name in expected if name not in found]
    if missing:
        raise ExportError(f"{folder}: no tensor {_few(missing)}; the checkpoint is incomplete")
    for name, shape in expected.items():
        if found[name] != shape:
            raise ExportError(
                f"{folder}: tensor {name} is {list(found[name])}, config.json says {list(shape)}; "
                "they belong to different models"
            )
    allowed = {HEAD} if spec.tied else set()
    others = sorted(set(found) - set(expected) - allowed)
    unknown = [name for name in others if not name.endswith(COMPUTED)]
    if unknown:
        raise ExportError(f"{folder}: the writer has no use for tensor {_few(unknown)}")


def _layer_shapes(spec: LlmSpec) -> dict[str, Shape]:
    hidden, inner = spec.hidden, spec.intermediate
    queries, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    linears = {
        "self_attn.q_proj": (queries, hidden, spec.qkv_bias),
        "self_attn.k_proj": (keys, hidden, spec.qkv_bias),
        "self_attn.v_proj": (keys, hidden, spec.qkv_bias),
        "self_attn.o_proj": (hidden, queries, spec.output_bias),
        "mlp.gate_proj": (inner, hidden, spec.mlp_bias),
        "mlp.up_proj": (inner, hidden, spec.mlp_bias),
        "mlp.down_proj": (hidden, inner, spec.mlp_bias),
    }
    shapes: dict[str, Shape] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    if spec.qk_norm:
        shapes["self_attn.q_norm.weight"] = shapes["self_attn.k_norm.weight"] = (spec.head_dim,)
    for name, (outputs, inputs, has_bias) in linears.items():
        shapes[f"{name}.weight"] = (outputs, inputs)
        if has_bias:
            shapes[f"{name}.bias"] = (outputs,)
    return shapes


def _few(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
