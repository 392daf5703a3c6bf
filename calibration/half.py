"""FP16 written into the graph, for TensorRT that takes precision from types alone (from 10.12).

Everything float becomes float16 except the nodes that must or should stay float32; inputs and
outputs keep their types, so both forms have one interface.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from calibration.errors import GraphError
from calibration.graph import drop_unread_initializers, prepared
from edge.spec import AnyArray

HALF_MAX = 65504.0
# An inner value this close to the largest float16 keeps its nodes in float32.
SAFE_MAX = HALF_MAX / 4
QDQ_OPSET = 19  # the first whose QuantizeLinear takes float16
_QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})
# Sums of squares and exponentials leave the range of float16 long before their inputs do.
KEPT_OPS = frozenset({"Pow", "ReduceSumSquare", "ReduceL2", "ReduceLogSumExp", "CumSum", "Range"})
# Inputs that the operator defines as float32, by position.
_FLOAT32_INPUTS: Mapping[str, frozenset[int]] = {
    "Resize": frozenset({1, 2}),
    "Upsample": frozenset({1}),
}
_SMALLEST_SCALE = 2.0**-24  # the smallest positive float16


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfModel:
    """The graph in float16, and the names of the nodes that stay in float32."""

    model: onnx.ModelProto
    kept: tuple[str, ...]


def to_half(
    model: onnx.ModelProto,
    *,
    keep: Iterable[str] = (),
    amax: Mapping[str, float] | None = None,
) -> HalfModel:
    """Return a copy of the model that computes in float16.

    keep: shell patterns of node names that stay float32. amax: largest magnitude seen in inner
    tensors; nodes that read or write one beyond SAFE_MAX stay float32 as well.
    Raises GraphError for control flow, and where the type of a tensor cannot be told.
    """
    copy = prepared(model)
    if any(a.HasField("g") or a.graphs for node in copy.graph.node for a in node.attribute):
        raise GraphError(
            "the graph has control flow (If, Loop or Scan), which cannot be rewritten to float16; "
            "build it in fp32, or export it without"
        )
    if any(node.op_type in _QDQ for node in copy.graph.node):
        copy = _at_opset(copy, QDQ_OPSET)
    converter = _Converter(copy, tuple(keep), amax or {})
    converter.run()
    onnx.checker.check_model(copy)
    return HalfModel(model=copy, kept=tuple(converter.kept))


class _Converter:
    def __init__(
        self, model: onnx.ModelProto, keep: tuple[str, ...], amax: Mapping[str, float]
    ) -> None:
        self.kept: list[str] = []
        self._graph = model.graph
        self._keep = keep
        self._amax = amax
        self._types = _element_types(model)
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._nodes: list[onnx.NodeProto] = []
        self._made: dict[tuple[str, int], str] = {}

    def run(self) -> None:
        """Rewrite the graph in place."""
        self._outer = {value.name for value in (*self._graph.input, *self._graph.output)}
        for node in list(self._graph.node):
            stays = self._stays(node)
            if stays and any(self._is_float(name) for name in (*node.input, *node.output)):
                self.kept.append(node.name)
            self._rewrite(node, TensorProto.FLOAT if stays else TensorProto.FLOAT16)
        outputs = [
            self._cast(f"{value.name}/half", value.name, TensorProto.FLOAT)
            for value in self._graph.output
            if self._is_float(value.name) and value.name not in self._inputs()
        ]
        del self._graph.node[:]
        self._graph.node.extend((*self._nodes, *outputs))
        del self._graph.value_info[:]
        drop_unread_initializers(self._graph)

    def _stays(self, node: onnx.NodeProto) -> bool:
        if node.op_type in KEPT_OPS or any(fnmatch.fnmatch(node.name, p) for p in self._keep):
            return True
        if node.op_type in _QDQ:
            scale = self._weights.get(node.input[1])
            smallest = 0.0 if scale is None else float(numpy_helper.to_array(scale).min())
            return smallest < _SMALLEST_SCALE
        return any(self._amax.get(n, 0.0) > SAFE_MAX for n in (*node.input, *node.output))

    def _rewrite(self, node: onnx.NodeProto, wanted: int) -> None:
        fixed = _FLOAT32_INPUTS.get(node.op_type, frozenset())
        for position, name in enumerate(node.input):
            if self._is_float(name):
                kind = TensorProto.FLOAT if position in fixed else wanted
                node.input[position] = self._as(name, kind)
        results = [name for name in node.output if self._is_float(name)]
        if wanted == TensorProto.FLOAT16:
            _retype_attributes(node)
            for position, name in enumerate(node.output):
                if name in results and name in self._outer:
                    node.output[position] = f"{name}/half"
            self._nodes.append(node)
            return
        for position, name in enumerate(node.output):
            if name in results:
                node.output[position] = f"{name}/float"
        self._nodes.append(node)
        for name in results:
            half = f"{name}/half" if name in self._outer else name
            self._nodes.append(self._cast(f"{name}/float", half, TensorProto.FLOAT16))
            self._made[name, TensorProto.FLOAT] = f"{name}/float"

    def _as(self, name: str, kind: int) -> str:
        """Return the tensor in this type, making it if nobody did before."""
        known = self._made.get((name, kind))
        if known is not None:
            return known
        weight = self._weights.get(name)
        if weight is not None:
            made = name if kind == TensorProto.FLOAT else self._half_weight(weight)
        elif name in self._inputs():
            made = name
            if kind == TensorProto.FLOAT16:
                made = f"{name}/half"
                self._nodes.append(self._cast(name, made, kind))
        else:
            made = f"{name}/half" if name in self._outer else name
            if kind == TensorProto.FLOAT:
                half, made = made, f"{name}/float"
                self._nodes.append(self._cast(half, made, kind))
        self._made[name, kind] = made
        return made

    def _half_weight(self, weight: onnx.TensorProto) -> str:
        name = f"{weight.name}/half"
        values = np.clip(numpy_helper.to_array(weight), -HALF_MAX, HALF_MAX)
        self._graph.initializer.append(numpy_helper.from_array(_rounded(values), name))
        return name

    def _inputs(self) -> set[str]:
        return {value.name for value in self._graph.input}

    def _is_float(self, name: str) -> bool:
        return bool(name) and self._type(name) == TensorProto.FLOAT

    def _type(self, name: str) -> int:
        if name not in self._types:
            raise GraphError(
                f"the type of tensor {name!r} cannot be told, so the graph cannot be rewritten to "
                "float16; export it again, or build it in fp32"
            )
        return self._types[name]

    def _cast(self, source: str, result: str, kind: int) -> onnx.NodeProto:
        return helper.make_node("Cast", [source], [result], name=f"{result}/cast", to=kind)


def _rounded(values: AnyArray) -> AnyArray:
    """Return float16 values; what is not zero stays so, and a scale must."""
    half = values.astype(np.float16)
    smallest = np.float16(_SMALLEST_SCALE)
    lost = (half == 0) & (values != 0)
    return np.where(lost, np.copysign(smallest, values).astype(np.float16), half)


def _retype_attributes(node: onnx.NodeProto) -> None:
    """Let a node that makes values of its own make float16."""
    for attribute in node.attribute:
        if attribute.name in {"to", "dtype"} and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        if attribute.name == "value" and attribute.t.data_type == TensorProto.FLOAT:
            half = numpy_helper.to_array(attribute.t).astype(np.float16)
            attribute.t.CopyFrom(numpy_helper.from_array(half, attribute.t.name))


def _element_types(model: onnx.ModelProto) -> dict[str, int]:
    inferred = shape_inference.infer_shapes(model).graph
    types = {tensor.name: tensor.data_type for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.output, *inferred.value_info):
        types[value.name] = value.type.tensor_type.elem_type
    return types


def _at_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    current = next(o.version for o in model.opset_import if o.domain in {"", "ai.onnx"})
    if current >= opset:
        return model
    try:
        converted: onnx.ModelProto = onnx.version_converter.convert_version(model, opset)
    except Exception as error:  # its own exception has no public name
        raise GraphError(
            f"the graph cannot be lifted from opset {current} to {opset}, which float16 Q/DQ "
            f"needs: {error}; export it with --opset {opset}"
        ) from error
    converted.metadata_props.extend(
        p for p in model.metadata_props if p not in converted.metadata_props
    )
    return converted
