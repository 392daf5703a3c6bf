"""What a TensorRT would refuse or run slowly in a graph, found before anybody waits for a build.

Rules come from the parsers' sources (onnx-tensorrt 8.5, 8.6, 10.1), from builds with TensorRT-RTX,
and from NVIDIA's guide "Working with Quantized Types". An error keeps an engine from being built or
makes it wrong; a warning costs speed or accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from calibration.graph import GraphIndex, prepared
from calibration.model_file import opset_of
from calibration.placement import FEW_CHANNELS, has_few_channels

LintTarget = Literal["any", "jetpack5", "jetpack6", "jetpack7", "rtx"]
Level = Literal["error", "warning"]

# The highest opset that the parser of each target reads: TensorRT 8.5, 8.6/10.3, 10.13, RTX 1.7.
HIGHEST_OPSET: Mapping[LintTarget, int] = {
    "any": 17, "jetpack5": 16, "jetpack6": 17, "jetpack7": 20, "rtx": 20,
}  # fmt: skip
# TensorRT 8.5 has no layer for these.
_UNKNOWN_TO_8_5 = frozenset({"HardSwish", "LayerNormalization", "Mod", "OneHot"})
_FLOAT_BY_NATURE = frozenset(
    {"InstanceNormalization", "LayerNormalization", "LogSoftmax", "Softmax"}
)
_WIDE = ("jetpack5", "jetpack6", "any")  # targets that may run TensorRT 8
_TYPE_NAME = {v: k for k, v in TensorProto.DataType.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One problem: a stable code, the node it is in, and what to do."""

    code: str
    level: Level
    node: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Graph:
    model: onnx.ModelProto
    target: LintTarget
    index: GraphIndex

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        return list(self.model.graph.node)

    def of(self, *kinds: str) -> Iterator[onnx.NodeProto]:
        return (node for node in self.nodes if node.op_type in kinds)

    def producer(self, tensor: str) -> str:
        """Return the operator that makes a tensor, "" for inputs and constants."""
        node = self.index.producers.get(tensor)
        return "" if node is None else str(node.op_type)


def lint(model: onnx.ModelProto, target: LintTarget = "any") -> tuple[Finding, ...]:
    """Return every finding, errors first, then in the order of the graph.

    "any" is the strictest of the targets: what passes there is read everywhere.
    """
    has_external = any(t.data_location == TensorProto.EXTERNAL for t in model.graph.initializer)
    ready = prepared(model)
    graph = _Graph(model=ready, target=target, index=GraphIndex.of(ready.graph))
    found = [finding for rule in _RULES for finding in rule(graph)]
    if has_external:
        found.append(
            _warning(
                "external-data",
                model.graph.name,
                "weights lie in another file, which must travel beside the graph; save it as one",
            )
        )
    position = {node.name: place for place, node in enumerate(ready.graph.node)}
    found.sort(key=lambda f: (f.level != "error", position.get(f.node, -1)))
    return tuple(found)


def error_lines(model: onnx.ModelProto, target: LintTarget) -> list[str]:
    """Return one line for each error of a graph."""
    return [f"{f.node}: {f.message}" for f in lint(model, target) if f.level == "error"]


def _error(code: str, node: str, message: str) -> Finding:
    return Finding(code=code, level="error", node=node, message=message)


def _warning(code: str, node: str, message: str) -> Finding:
    return Finding(code=code, level="warning", node=node, message=message)


def _opset(graph: _Graph) -> Iterator[Finding]:
    found, highest = opset_of(graph.model), HIGHEST_OPSET[graph.target]
    if found > highest:
        yield _error(
            "opset",
            graph.model.graph.name,
            f"opset {found} is newer than {highest}, the last that target {graph.target!r} reads; "
            f"export with --opset {highest}",
        )


def _strings(graph: _Graph) -> Iterator[Finding]:
    for value in (*graph.model.graph.input, *graph.model.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.STRING:
            yield _error(
                "strings",
                graph.model.graph.name,
                f"tensor {value.name!r} holds strings, which TensorRT does not have; serve the "
                "model with ONNX Runtime",
            )


def _unknown_operators(graph: _Graph) -> Iterator[Finding]:
    for node in graph.nodes:
        if node.domain not in {"", "ai.onnx"}:
            yield _error(
                "domain",
                node.name,
                f"operator {node.domain}.{node.op_type} is not part of ONNX; export the model "
                "without it",
            )
        elif graph.target == "jetpack5" and node.op_type in _UNKNOWN_TO_8_5:
            yield _error(
                "operator",
                node.name,
                f"TensorRT 8.5 has no {node.op_type}; export with --target jetpack5, which writes "
                "it in older operators",
            )


def _zero_points(graph: _Graph) -> Iterator[Finding]:
    for node in graph.of("QuantizeLinear", "DequantizeLinear"):
        if len(node.input) < 3 or not node.input[2]:
            if graph.target in _WIDE:
                yield _error(
                    "zero-point-missing",
                    node.name,
                    "TensorRT 8 wants the zero point as a third input; give one of int8 zeros",
                )
            continue
        zero = graph.index.weights.get(node.input[2])
        if zero is None:
            yield _error("zero-point-computed", node.name, "the zero point must be a constant")
        elif zero.data_type != TensorProto.INT8:
            kind = _TYPE_NAME[zero.data_type].lower()
            what = "int32 biases" if kind == "int32" else kind
            yield _error(
                "zero-point-type",
                node.name,
                f"TensorRT has no {what}; quantize to int8, symmetric"
                + (", and leave the bias in float" if kind == "int32" else ""),
            )
        elif numpy_helper.to_array(zero).any():
            yield _error(
                "zero-point", node.name, "the zero point is not zero; quantize symmetrically"
            )


def _scales(graph: _Graph) -> Iterator[Finding]:
    for node in graph.of("QuantizeLinear", "DequantizeLinear"):
        scale = graph.index.weights.get(node.input[1])
        if scale is None:
            yield _error("scale-computed", node.name, "the scale must be a constant")
            continue
        values = numpy_helper.to_array(scale).astype(np.float64)
        if not (np.isfinite(values) & (values > 0)).all():
            yield _error("scale", node.name, "a scale is not positive; calibrate again")
        is_activation = node.input[0] not in graph.index.weights
        if node.op_type == "QuantizeLinear" and is_activation and values.size > 1:
            yield _error(
                "per-channel-activation",
                node.name,
                "activations are quantized per tensor; give one scale",
            )


def _stored_weights(graph: _Graph) -> Iterator[Finding]:
    if graph.target not in _WIDE:
        return
    for node in graph.of("DequantizeLinear"):
        if node.input[0] in graph.index.weights:
            yield _error(
                "weight-stored",
                node.name,
                "the weight is stored as integers; TensorRT 8 wants it in float behind Q and DQ",
            )


def _halves(graph: _Graph) -> Iterator[Finding]:
    for node in graph.of("Conv", "ConvTranspose", "Gemm", "MatMul"):
        operands = [graph.producer(name) == "DequantizeLinear" for name in node.input[:2]]
        if any(operands) and not all(operands):
            which = "weight" if operands[0] else "activation"
            yield _warning(
                "half-quantized", node.name, f"the {which} is float, so the product is as well"
            )


def _between_conv_and_relu(graph: _Graph) -> Iterator[Finding]:
    for node in graph.of("Relu", "Clip"):
        behind = graph.index.producers.get(node.input[0])
        if behind is None or behind.op_type != "DequantizeLinear":
            continue
        quantize = graph.index.producers.get(behind.input[0])
        if quantize is not None and graph.producer(quantize.input[0]) in {"Conv", "Gemm"}:
            yield _warning(
                "before-activation",
                quantize.name,
                f"Q stands between a product and {node.name}, so the two are not fused; quantize "
                "behind the activation",
            )


def _float_by_nature(graph: _Graph) -> Iterator[Finding]:
    for node in graph.nodes:
        reads = graph.producer(node.input[0]) if node.input else ""
        if node.op_type in _FLOAT_BY_NATURE and reads == "DequantizeLinear":
            yield _warning(
                "float-operator",
                node.name,
                f"{node.op_type} computes in float whatever it reads; leave its input unquantized",
            )


def _sums(graph: _Graph) -> Iterator[Finding]:
    for node in graph.of("Add"):
        if all(graph.producer(name) == "DequantizeLinear" for name in node.input):
            yield _warning(
                "both-operands",
                node.name,
                "both operands of the sum are quantized, so the convolution before it writes float "
                "first; quantize the skip edge alone",
            )


def _shared_scales(graph: _Graph) -> Iterator[Finding]:
    for node in graph.of("Concat"):
        scales = {
            float(numpy_helper.to_array(graph.index.weights[made.input[1]]).max())
            for made in map(graph.index.producers.get, node.input)
            if made is not None
            and made.op_type == "DequantizeLinear"
            and made.input[1] in graph.index.weights
        }
        if len(scales) > 1:
            yield _warning(
                "concat-scales",
                node.name,
                "the inputs have different scales, so each is written again; give them one range",
            )
    for tensor, readers in graph.index.consumers.items():
        pairs = [node for node in readers if node.op_type == "QuantizeLinear"]
        if len({node.input[1] for node in pairs}) > 1:
            yield _warning(
                "several-pairs",
                pairs[1].name,
                f"tensor {tensor!r} is quantized {len(pairs)} times; let all readers share one "
                "Q/DQ pair",
            )


def _few_channels(graph: _Graph) -> Iterator[Finding]:
    for node in graph.of("Conv"):
        pair = graph.index.producers.get(node.input[1])
        if pair is None or pair.op_type != "DequantizeLinear":
            continue
        quantize = graph.index.producers.get(pair.input[0])
        weight = graph.index.weights.get(quantize.input[0] if quantize else pair.input[0])
        if weight is not None and has_few_channels(node, tuple(weight.dims)):
            yield _warning(
                "few-channels",
                node.name,
                f"int8 kernels work on {FEW_CHANNELS} and more channels, this layer's weight is "
                f"{'x'.join(map(str, weight.dims))}; keep it in float if int8 is not faster",
            )


_RULES: tuple[Callable[[_Graph], Iterator[Finding]], ...] = (
    _opset, _strings, _unknown_operators, _zero_points, _scales, _stored_weights,
    _halves, _between_conv_and_relu, _float_by_nature, _sums, _shared_scales, _few_channels,
)  # fmt: skip
