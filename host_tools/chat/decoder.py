"""The layers of a decoder, from token ids to logits.

In shapes: B lanes, S new tokens, W wanted rows, H query heads, K heads of keys and values,
D head_dim, E hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from edge.chat.spec import Form
from host_tools.chat.attention import add_attention, cache_output_shape, cache_shape
from host_tools.chat.graph import Graph
from host_tools.chat.layerwise import HEAD
from host_tools.chat.linear import Linear, Precision, add_embedding, add_linear
from host_tools.chat.llm_spec import LlmSpec
from host_tools.chat.positions import Positions
from host_tools.chat.scaling import Calibration
from host_tools.chat.weights import Weights, whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a decoder is written.

    body, head: precision of the layers' weights, and of those that give the logits.
    half_table: whether the embedding is stored as FP16 whatever the activations are.
    calibration: of the weights that are written, which are ScaledWeights then.
    """

    form: Form
    context: int
    body: Precision
    head: Precision
    half_table: bool
    calibration: Calibration | None = None


def add_decoder(graph: Graph, spec: LlmSpec, weights: Weights, plan: Plan) -> None:
    """Add the whole decoder with its inputs and outputs, reading each weight once."""
    tokens = graph.input("input_ids", TensorProto.INT64, ("lanes", "tokens"))
    for layer in range(spec.layers):
        for kind in ("key", "value"):
            graph.input(f"{kind}_{layer}", graph.float_type, cache_shape(plan.form, spec))
    positions = Positions(graph, spec, plan.form, plan.context)
    rows = graph.input("rows", TensorProto.INT64, ("lanes", "wanted"))
    wanted = graph.add("Unsqueeze", rows, graph.ints(2), name="rows.column")
    layers = _Layers(graph, spec, weights, plan, positions, wanted)
    hidden = add_embedding(
        graph, weights, tokens, "model.embed_tokens", half=graph.half or plan.half_table
    )
    for layer in range(spec.layers):
        hidden = layers.add(layer, hidden)
    _add_logits(layers, hidden)
    suffix = "new" if plan.form == "prefix" else "out"
    for layer in range(spec.layers):
        for kind in ("key", "value"):
            shape = cache_output_shape(plan.form, spec)
            graph.output(f"{kind}_{layer}_{suffix}", graph.float_type, shape)


class _Layers:
    """What every layer needs, and the parts it is made of."""

    def __init__(
        self,
        graph: Graph,
        spec: LlmSpec,
        weights: Weights,
        plan: Plan,
        positions: Positions,
        wanted: str,
    ) -> None:
        self.graph = graph
        self.spec = spec
        self.weights = weights
        self.plan = plan
        self._positions = positions
        self._wanted = wanted

    def add(self, layer: int, hidden: str) -> str:
        """Add a layer behind [B, S, E]; the last one goes on with the wanted rows alone."""
        graph, spec, name = self.graph, self.spec, f"layers.{layer}"
        x = self.norm(hidden, f"model.{name}.input_layernorm", f"{name}.input_norm")
        mixed = self._attention(layer, x)
        if layer == spec.layers - 1:
            mixed = self._wanted_rows(mixed, f"{name}.attention.wanted")
            hidden = self._wanted_rows(hidden, f"{name}.wanted")
        projected = self._linear(
            mixed,
            f"{name}.output",
            (f"model.{name}.self_attn.o_proj",),
            bias=spec.output_bias,
        )
        hidden = graph.add("Add", hidden, projected, name=f"{name}.after_attention")
        x = self.norm(hidden, f"model.{name}.post_attention_layernorm", f"{name}.mlp_norm")
        return graph.add("Add", hidden, self._mlp(name, x), name=f"{name}.after_mlp")

    def norm(self, x: str, layer: str, name: str) -> str:
        """Add RMSNorm over the last axis; sums are FP32."""
        graph = self.graph
        scale = graph.floats(f"{name}.scale", whole(self.weights, f"{layer}.weight"))
        epsilon = self.spec.norm_eps
        if graph.opset >= 23:
            return graph.add("RMSNormalization", x, scale, name=name, axis=-1, epsilon=epsilon)
        if graph.half:
            x = graph.add("Cast", x, name=f"{name}.float", to=TensorProto.FLOAT)
        two, small = (graph.constant(np.array(value, np.float32)) for value in (2.0, epsilon))
        squares = graph.add("Pow", x, two, name=f"{name}.squares")
        mean = self._mean(squares, f"{name}.mean")
        positive = graph.add("Add", mean, small, name=f"{name}.positive")
        size = graph.add("Sqrt", positive, name=f"{name}.size")
        x = graph.add("Div", x, size, name=f"{name}.normal")
        if graph.half:
            x = graph.add("Cast", x, name=f"{name}.half", to=TensorProto.FLOAT16)
        return graph.add("Mul", x, scale, name=name)

    def _mean(self, x: str, name: str) -> str:
        if self.graph.opset >= 18:
            return self.graph.add("ReduceMean", x, self.graph.ints(-1), name=name, keepdims=1)
        return self.graph.add("ReduceMean", x, name=name, axes=[-1], keepdims=1)

    def _attention(self, layer: int, x: str) -> str:
        """Add attention behind normed activations; return [B, S, H * D]."""
        graph, spec, name = self.graph, self.spec, f"layers.{layer}"
        heads, kv_heads = spec.heads, spec.kv_heads
        attention = f"model.{name}.self_attn"
        parts = (f"{attention}.q_proj", f"{attention}.k_proj", f"{attention}.v_proj")
        joined = self._linear(x, f"{name}.qkv", parts, bias=spec.qkv_bias)
        shape = graph.ints(0, 0, heads + 2 * kv_heads, spec.head_dim)
        apart = graph.add("Reshape", joined, shape, name=f"{name}.qkv.heads")
        apart = graph.add("Transpose", apart, name=f"{name}.qkv.by_head", perm=(0, 2, 1, 3))
        if spec.qk_norm:
            query, key, value = self._split(apart, f"{name}.qkv", (heads, kv_heads, kv_heads))
            query = self.norm(query, f"{attention}.q_norm", f"{name}.query_norm")
            key = self.norm(key, f"{attention}.k_norm", f"{name}.key_norm")
            query = self._positions.rotated(query, name=f"{name}.query.rotated")
            key = self._positions.rotated(key, name=f"{name}.key.rotated")
        else:  # one rotation for both
            both, value = self._split(apart, f"{name}.qkv", (heads + kv_heads, kv_heads))
            both = self._positions.rotated(both, name=f"{name}.rotated")
            query, key = self._split(both, f"{name}.query_key", (heads, kv_heads))
        mixed = add_attention(self._positions, layer, query, key, value)
        mixed = graph.add("Transpose", mixed, name=f"{name}.mixed.by_token", perm=(0, 2, 1, 3))
        shape = graph.ints(0, 0, heads * spec.head_dim)
        return graph.add("Reshape", mixed, shape, name=f"{name}.mixed")

    def _mlp(self, name: str, x: str) -> str:
        graph, bias = self.graph, self.spec.mlp_bias
        mlp = f"model.{name}.mlp"
        layers = (f"{mlp}.gate_proj", f"{mlp}.up_proj")
        joined = self._linear(x, f"{name}.gate_up", layers, bias=bias)
        sizes = (self.spec.intermediate, self.spec.intermediate)
        gate, up = self._split(joined, f"{name}.gate_up", sizes, axis=-1)
        share = graph.add("Sigmoid", gate, name=f"{name}.sigmoid")
        gate = graph.add("Mul", gate, share, name=f"{name}.silu")
        inner = graph.add("Mul", gate, up, name=f"{name}.gated")
        return self._linear(inner, f"{name}.down", (f"{mlp}.down_proj",), bias=bias)

    def _split(self, x: str, name: str, sizes: tuple[int, ...], axis: int = 1) -> tuple[str, ...]:
        outputs = tuple(f"{name}.part{i}" for i in range(len(sizes)))
        return self.graph.add_many(
            "Split", x, self.graph.ints(*sizes), name=f"{name}.split", outputs=outputs, axis=axis
        )

    def _wanted_rows(self, x: str, name: str) -> str:
        """Return the wanted rows [B, W, any] of [B, S, any]."""
        return self.graph.add("GatherND", x, self._wanted, name=name, batch_dims=1)

    def _linear(self, x: str, name: str, layers: tuple[str, ...], *, bias: bool) -> str:
        return self.add_linear(x, name, layers, self.plan.body, bias=bias)

    def add_linear(
        self,
        x: str,
        name: str,
        layers: tuple[str, ...],
        precision: Precision,
        *,
        bias: bool = False,
    ) -> str:
        """Add layers that read the same activations, with what calibration found about these."""
        calibration = self.plan.calibration
        activations = None if calibration is None else calibration.sites[layers[0]]
        linear = Linear(name=name, layers=layers, bias=bias, activations=activations)
        return add_linear(self.graph, self.weights, x, linear, precision)


def _add_logits(layers: _Layers, hidden: str) -> None:
    """Add the head behind the wanted rows [B, W, E]; logits are FP32 whatever came before."""
    graph, spec, plan = layers.graph, layers.spec, layers.plan
    x = layers.norm(hidden, "model.norm", "norm")
    last = "head" if graph.half else "logits"
    is_table = spec.tied and plan.calibration is None
    if is_table and plan.head == "float" and graph.half >= plan.half_table:
        # The table of the embedding, not a copy of it.
        table = graph.add("Transpose", "model.embed_tokens.weight", name="head.weight", perm=(1, 0))
        logits = graph.add("MatMul", x, table, name=last)
    else:
        layer = "model.embed_tokens" if is_table else HEAD
        logits = layers.add_linear(x, last, (layer,), plan.head)
    if graph.half:
        graph.add("Cast", logits, name="logits", to=TensorProto.FLOAT)
    graph.output("logits", TensorProto.FLOAT, ("lanes", "wanted", spec.vocabulary))
