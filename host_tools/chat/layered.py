"""From a Hugging Face folder to a chat model in pieces; see `edge.chat.layered` for the graphs.

All gathers of heads and of halves are there on purpose: TensorRT 8 hands a whole subgraph to its
fusing compiler when it meets one, and otherwise times each pointwise operator by itself for
minutes and runs it by itself, too.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto

from edge import __version__
from edge.chat.layered import (
    LAYER_WEIGHTS,
    LIKELIEST,
    MODEL_FILE,
    WEIGHTS_FILE,
    LayeredModel,
    Piece,
    pieces_for,
)
from edge.chat.spec import DecoderSpec
from edge.errors import UsageError
from edge.files import atomic_write, storage_errors
from host_tools.chat.graph import Graph, WeightFile
from host_tools.chat.layered_weights import write_weights
from host_tools.chat.layout import check_layout
from host_tools.chat.llm_spec import LlmSpec, llm_spec_from_folder
from host_tools.chat.lora import merge_adapters
from host_tools.chat.weights import Checkpoint
from host_tools.errors import ExportError

OPSET = 17  # where TensorRT 8.6 ends
GROUP = 128  # logits whose maximum is looked at first


def write_layered(
    folder: Path,
    out: Path,
    *,
    lanes: int,
    chunks: tuple[int, ...],
    capacities: tuple[int, ...],
    half: bool,
    adapters: tuple[Path, ...] = (),
) -> LayeredModel:
    """Write the pieces and the weights of a Hugging Face folder into a new folder `out`.

    lanes, chunks, capacities: see `edge.chat.layered.pieces_for`; the largest capacity is the
    context. half: FP16, else FP32. adapters: see `writer.WriteOptions`.
    Raises UsageError, ExportError or StorageError.
    """
    spec = llm_spec_from_folder(folder)
    checkpoint = Checkpoint.from_folder(folder)
    check_layout(spec, checkpoint.shapes, folder)
    weights, spec = merge_adapters(checkpoint, spec, adapters)
    model = layered_model(spec, lanes=lanes, chunks=chunks, capacities=capacities, half=half)
    with storage_errors("write", out):
        scratch = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        write_graphs(spec, model, scratch)
        with storage_errors("write", scratch / WEIGHTS_FILE):
            tensors = write_weights(scratch / WEIGHTS_FILE, spec, weights, model)
        model = replace(model, tensors=tensors)
        atomic_write(scratch / MODEL_FILE, msgspec.json.encode(model))
        with storage_errors("write", out):
            scratch.chmod(0o755)
            scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return model


def layered_model(
    spec: LlmSpec, *, lanes: int, chunks: tuple[int, ...], capacities: tuple[int, ...], half: bool
) -> LayeredModel:
    """Return the model that a spec makes, without tensors."""
    context = max(capacities)
    if context > spec.context or min(capacities) < 1:
        raise UsageError(f"capacities {capacities}: the model was made for 1..{spec.context}")
    if lanes < 1 or min(chunks) < 2 or max(chunks) > context:
        raise UsageError(f"{lanes} lanes, chunks {chunks}: at least 1, and 2..{context} tokens")
    if spec.output_bias or spec.mlp_bias:
        raise ExportError(f"{spec.family}: pieces have no biases but those of queries to values")
    windows = [window for window in spec.windows if window is not None]
    if windows and min(windows) < context:
        raise ExportError(
            f"its window of {min(windows)} is less than the largest capacity, {context}; pieces "
            "see the whole cache: give smaller ones"
        )
    return LayeredModel(
        decoder=DecoderSpec(
            form="layered",
            lanes=lanes,
            layers=spec.layers,
            kv_heads=spec.kv_heads,
            head_dim=spec.head_dim,
            vocabulary=spec.vocabulary,
            context=context,
            cache="FP16" if half else "FP32",
            eos=spec.eos,
        ),
        hidden=spec.hidden,
        heads=spec.heads,
        layer_weights=(
            *LAYER_WEIGHTS,
            *(("qkv_bias",) if spec.qkv_bias else ()),
            *(("head_norm",) if spec.qk_norm else ()),
        ),
        pieces=pieces_for(lanes, chunks, capacities),
        tensors=(),
    )


def write_graphs(spec: LlmSpec, model: LayeredModel, folder: Path) -> None:
    """Write the ONNX file of every piece into a folder."""
    for piece in model.pieces:
        graph = Graph(
            opset=OPSET, half=model.decoder.cache == "FP16", weights=WeightFile(io.BytesIO(), "")
        )
        if piece.kind == "tail":
            _add_tail(graph, spec, piece)
        else:
            _Layer(graph, spec, piece).add()
        proto = graph.model(producer="edge-kit", version=__version__)
        onnx.checker.check_model(proto, full_check=True)
        with storage_errors("write", folder / piece.file):
            (folder / piece.file).write_bytes(proto.SerializeToString())


class _Layer:
    """The graph of a layer in the making."""

    def __init__(self, graph: Graph, spec: LlmSpec, piece: Piece) -> None:
        self.graph = graph
        self.spec = spec
        self.lanes, self.tokens, self.capacity = piece.lanes, piece.tokens, piece.capacity or 0
        self.group = spec.heads // spec.kv_heads

    def add(self) -> None:
        """Add all of it."""
        graph, spec = self.graph, self.spec
        rows, float_type = self.lanes * self.tokens, graph.float_type
        hidden = graph.input("hidden", float_type, (1, rows, spec.hidden))
        width = spec.heads * spec.head_dim
        mixed = self._linear(self._attention(hidden), "output", width, spec.hidden)
        hidden = graph.add("Add", hidden, mixed, name="after_attention")
        x = _norm(graph, hidden, "mlp_norm", spec)
        gate = self._linear(x, "gate", spec.hidden, spec.intermediate)
        up = self._linear(x, "up", spec.hidden, spec.intermediate)
        share = graph.add("Sigmoid", gate, name="gate.sigmoid")
        gated = graph.add("Mul", graph.add("Mul", gate, share, name="silu"), up, name="gated")
        down = self._linear(gated, "down", spec.intermediate, spec.hidden)
        graph.add("Add", hidden, down, name="hidden_out")
        graph.output("hidden_out", float_type, (1, rows, spec.hidden))
        heads = spec.heads + 2 * spec.kv_heads
        graph.output("heads", float_type, (self.lanes, heads, self.tokens, spec.head_dim))

    def _linear(self, x: str, name: str, inputs: int, outputs: int) -> str:
        weights = self.graph.input(name, self.graph.float_type, (inputs, outputs))
        return self.graph.add("MatMul", x, weights, name=f"{name}.product")

    def _attention(self, hidden: str) -> str:
        """Return the mixed values [1, B * S, H * D] of what the new tokens see."""
        graph, spec, heads = self.graph, self.spec, self._heads(hidden)
        lanes, tokens, dim = self.lanes, self.tokens, spec.head_dim
        first, second = spec.heads, spec.heads + spec.kv_heads
        query = self._some(heads, "query", 0, first)
        key = self._some(heads, "key_new", first, second)
        value = self._some(heads, "value_new", second, second + spec.kv_heads)
        grouped = graph.ints(lanes, spec.kv_heads, self.group * tokens, dim)
        query = graph.add("Reshape", query, grouped, name="query.grouped")
        shape = (lanes, spec.kv_heads, self.capacity, dim)
        cached = {n: graph.input(n, graph.float_type, shape) for n in ("key", "value")}
        mask = graph.input("mask", graph.float_type, (lanes, 1, 1, self.capacity))
        old = graph.add("Add", self._scores(query, cached["key"], "old"), mask, name="old.masked")
        new = self._scores(query, key, "new")
        if tokens > 1:
            new = graph.add("Add", new, self._causal(), name="new.masked")
        scores = graph.add("Concat", old, new, name="scores", axis=-1)
        shares = graph.add("Softmax", scores, name="shares", axis=-1)
        border, axis = self.capacity, graph.ints(3)
        parts = []
        for name, begin, end, values in (
            ("old", 0, border, cached["value"]),
            ("new", border, border + tokens, value),
        ):
            ends = graph.ints(begin), graph.ints(end)
            part = graph.add("Slice", shares, *ends, axis, name=f"{name}.shares")
            parts.append(graph.add("MatMul", part, values, name=f"{name}.mixed"))
        mixed = graph.add("Add", *parts, name="mixed")
        if tokens > 1:
            shape4 = graph.ints(lanes, spec.heads, tokens, dim)
            mixed = graph.add("Reshape", mixed, shape4, name="mixed.heads")
            mixed = graph.add("Transpose", mixed, name="mixed.by_token", perm=(0, 2, 1, 3))
        rows = graph.ints(1, lanes * tokens, spec.heads * dim)
        return graph.add("Reshape", mixed, rows, name="mixed.rows")

    def _heads(self, hidden: str) -> str:
        """Return queries, keys and values [B, N, S, D], the first two rotated; an output."""
        graph, spec = self.graph, self.spec
        lanes, tokens, dim = self.lanes, self.tokens, spec.head_dim
        count = spec.heads + 2 * spec.kv_heads
        x = _norm(graph, hidden, "input_norm", spec)
        x = self._linear(x, "qkv", spec.hidden, count * dim)
        if spec.qkv_bias:
            bias = graph.input("qkv_bias", graph.float_type, (count * dim,))
            x = graph.add("Add", x, bias, name="qkv.biased")
        if tokens > 1:
            x = graph.add("Reshape", x, graph.ints(lanes, tokens, count, dim), name="qkv.rows")
            x = graph.add("Transpose", x, name="qkv.heads", perm=(0, 2, 1, 3))
        else:
            x = graph.add("Reshape", x, graph.ints(lanes, count, 1, dim), name="qkv.heads")
        # Values are neither normed nor rotated: their cosine is 1 and their sine 0.
        turns = np.ones((1, count, 1, 1), graph.float_dtype)
        turns[:, -spec.kv_heads :] = 0
        rotated, straight = graph.constant(turns), graph.constant(1 - turns)
        if spec.qk_norm:
            normed = _norm(graph, x, "head_norm", spec, (1, count, 1, dim))
            normed = graph.add("Mul", normed, rotated, name="head_norm.rotated")
            kept = graph.add("Mul", x, straight, name="head_norm.kept")
            x = graph.add("Add", normed, kept, name="qkv.normed")
        factors = []
        for name in ("cosines", "sines"):
            table = graph.input(name, graph.float_type, (lanes, 1, tokens, dim))
            factors.append(graph.add("Mul", table, rotated, name=f"{name}.rotated"))
        cosines = graph.add("Add", factors[0], straight, name="cosines.all")
        half = dim // 2
        order = graph.constant(np.r_[half:dim, 0:half].astype(np.int64))
        swapped = graph.add("Gather", x, order, name="qkv.swapped", axis=3)
        along = graph.add("Mul", x, cosines, name="qkv.along")
        across = graph.add("Mul", swapped, factors[1], name="qkv.across")
        return graph.add("Add", along, across, name="heads")

    def _some(self, heads: str, name: str, begin: int, end: int) -> str:
        indices = self.graph.constant(np.arange(begin, end))
        return self.graph.add("Gather", heads, indices, name=name, axis=1)

    def _scores(self, query: str, keys: str, name: str) -> str:
        graph = self.graph
        columns = graph.add("Transpose", keys, name=f"{name}.columns", perm=(0, 1, 3, 2))
        products = graph.add("MatMul", query, columns, name=f"{name}.products")
        scale = np.full((1, 1, 1, 1), self.spec.head_dim**-0.5, graph.float_dtype)
        return graph.add("Mul", products, graph.constant(scale), name=f"{name}.scores")

    def _causal(self) -> str:
        """Return what hides later tokens of the chunk, for all queries that share a key."""
        graph, tokens = self.graph, self.tokens
        lowest = np.finfo(graph.float_dtype).min
        own = np.triu(np.full((tokens, tokens), lowest, graph.float_dtype), 1)
        return graph.constant(np.tile(own, (self.group, 1))[None, None])


def _add_tail(graph: Graph, spec: LlmSpec, piece: Piece) -> None:
    """Add norm, head, and the likeliest tokens: of the groups with the largest maxima."""
    lanes, vocabulary = piece.lanes, spec.vocabulary
    hidden = graph.input("hidden", graph.float_type, (1, lanes, spec.hidden))
    x = _norm(graph, hidden, "norm", spec)
    head = graph.input("head", graph.float_type, (spec.hidden, vocabulary))
    logits = graph.add("MatMul", x, head, name="head.product")
    if graph.half:
        logits = graph.add("Cast", logits, name="head.float", to=TensorProto.FLOAT)
    logits = graph.add("Reshape", logits, graph.ints(lanes, vocabulary), name="logits")
    graph.output("logits", TensorProto.FLOAT, (lanes, vocabulary))
    groups = vocabulary // GROUP
    count = min(LIKELIEST, vocabulary)
    if vocabulary % GROUP or groups <= LIKELIEST:
        found = _largest(graph, logits, count, "top")
    else:
        grouped = graph.add("Reshape", logits, graph.ints(lanes, groups, GROUP), name="groups")
        highest = graph.add("ReduceMax", grouped, name="groups.max", axes=[-1], keepdims=0)
        _, places = _largest(graph, highest, count, "groups.top")
        places = graph.add("Unsqueeze", places, graph.ints(2), name="groups.places")
        few = graph.add("GatherND", grouped, places, name="few", batch_dims=1)
        flat = graph.ints(lanes, count * GROUP)
        size = graph.constant(np.full((1, 1, 1), GROUP))
        inside = graph.constant(np.arange(GROUP).reshape(1, 1, GROUP))
        tokens = graph.add("Mul", places, size, name="few.begin")
        tokens = graph.add("Add", tokens, inside, name="few.tokens")
        tokens = graph.add("Reshape", tokens, flat, name="few.tokens.flat")
        few = graph.add("Reshape", few, flat, name="few.flat")
        values, best = _largest(graph, few, count, "few.top")
        found = values, graph.add("GatherElements", tokens, best, name="few.best", axis=1)
    graph.add("Identity", found[0], name="top")
    graph.add("Identity", found[1], name="top_ids")
    graph.output("top", TensorProto.FLOAT, (lanes, count))
    graph.output("top_ids", TensorProto.INT64, (lanes, count))


def _largest(graph: Graph, x: str, count: int, name: str) -> tuple[str, str]:
    values, ids = graph.add_many(
        "TopK", x, graph.ints(count), name=f"{name}.largest",
        outputs=(f"{name}.values", f"{name}.ids"), axis=-1,
    )  # fmt: skip
    return values, ids


def _norm(
    graph: Graph, x: str, scale: str, spec: LlmSpec, shape: tuple[int, ...] | None = None
) -> str:
    """Add RMSNorm over the last axis with a scale that is an input; sums are FP32."""
    given = graph.input(scale, graph.float_type, (spec.hidden,) if shape is None else shape)
    if graph.half:
        x = graph.add("Cast", x, name=f"{scale}.float", to=TensorProto.FLOAT)
    squares = graph.add("Mul", x, x, name=f"{scale}.squares")
    mean = graph.add("ReduceMean", squares, name=f"{scale}.mean", axes=[-1], keepdims=1)
    small = graph.constant(np.array(spec.norm_eps, np.float32))
    positive = graph.add("Add", mean, small, name=f"{scale}.positive")
    size = graph.add("Sqrt", positive, name=f"{scale}.size")
    x = graph.add("Div", x, size, name=f"{scale}.normal")
    if graph.half:
        x = graph.add("Cast", x, name=f"{scale}.half", to=TensorProto.FLOAT16)
    return graph.add("Mul", x, given, name=f"{scale}.scaled")
