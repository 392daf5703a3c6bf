"""Move range from activations into weights, channel by channel, without changing the function.

An activation with a few large channels wastes the levels of its one scale on all others. Dividing
channel j of it by s_j, and multiplying what reads channel j by s_j, leaves the model as it is. The
division is free where the node before can take it: the output channels of a Conv or Gemm behind
a ReLU, the bias behind a MatMul, the scale of a LayerNormalization. Elsewhere a Mul is inserted,
and only where channels differ much.

    s_j = amax(x_j)^a / amax(w_j)^(1-a),   w_j: all weights that read channel j

Sources: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
Correction", arXiv 1906.04721 (across layers, a = 1/2); Xiao et al. 2022, "SmoothQuant", arXiv
2211.10438 (into the normalisation, the formula, 0.5 to 0.85). A depthwise Conv reads each channel
with a weight scale of its own, so all range can move into it: a = 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from calibration.graph import GraphIndex, attribute, drop_unread_initializers
from calibration.placement import Placement
from calibration.runtime import Runner, with_outputs
from edge.spec import AnyArray, Feeds

# A Mul costs a pass over the tensor: not for channels that differ by less, largest to median.
INSERT_FROM = 6.0
# The exponent a: how much of the range moves into the weights.
MIGRATIONS = (0.5, 0.65, 0.8)
# Beyond this a factor would only move the problem into the weights, or out of float16.
LARGEST_FACTOR = 64.0
# For any s > 0: f(x / s) = f(x) / s, channel by channel.
_HOMOGENEOUS = frozenset(
    {"AveragePool", "Dropout", "GlobalAveragePool", "Identity", "LeakyRelu", "MaxPool", "Relu"}
)
Channels = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Site:
    """One activation whose channels can be scaled.

    axis: of the channels in the tensor. readers: quantized nodes that read it, with the axis of
    their weight that the channels run along. source: the node that takes the division, None
    where a Mul has to.
    """

    tensor: str
    axis: int
    readers: tuple[tuple[onnx.NodeProto, int], ...]
    is_depthwise: bool
    source: onnx.NodeProto | None


def channel_ranges(
    model: onnx.ModelProto, placement: Placement, batches: Iterable[Feeds]
) -> dict[str, Channels]:
    """Return the largest magnitude of every channel, by tensor whose channels can be moved.

    Of each batch, and then the median: one strange sample must not decide.
    """
    sites = _sites(model, placement)
    if not sites:
        return {}
    runner = Runner(with_outputs(model, [site.tensor for site in sites]))
    seen: dict[str, list[Channels]] = {site.tensor: [] for site in sites}
    for feeds in batches:
        values = runner.run(feeds)
        for site in sites:
            value = np.moveaxis(values[site.tensor], site.axis, -1)
            found = np.abs(value.reshape(-1, value.shape[-1])).max(axis=0).astype(np.float32)
            seen[site.tensor].append(found)
    return {tensor: np.median(found, axis=0) for tensor, found in seen.items()}


def equalized(
    model: onnx.ModelProto,
    placement: Placement,
    ranges: Mapping[str, Channels],
    migration: float = MIGRATIONS[0],
) -> onnx.ModelProto | None:
    """Return a model of the same function with equalized channels, None if there are none to move.

    ranges: as `channel_ranges` gives them. migration: a in the formula.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    index, changed = GraphIndex.of(copy.graph), False
    for site in _sites(copy, placement):
        factors = _factors(site, ranges[site.tensor], index, migration)
        if np.allclose(factors, 1.0, rtol=1e-3):
            continue
        _divide(copy.graph, site, factors, index)
        for node, axis in site.readers:
            weight = numpy_helper.to_array(index.weights[node.input[1]])
            node.input[1] = _add(copy.graph, index, node.input[1], _scaled(weight, factors, axis))
        changed = True
    drop_unread_initializers(copy.graph)
    return copy if changed else None


def _sites(model: onnx.ModelProto, placement: Placement) -> list[_Site]:
    index = GraphIndex.of(model.graph)
    outputs = {output.name for output in model.graph.output}
    by_name = {node.name: node for node in model.graph.node}
    sites = []
    for tensor in dict.fromkeys(node.activation for node in placement.quantized):
        if tensor not in index.producers:
            continue
        nodes = [by_name[n.name] for n in placement.quantized if n.activation == tensor]
        kinds = {"conv" if node.op_type == "Conv" else node.op_type for node in nodes}
        if "ConvTranspose" in kinds or ("conv" in kinds and len(kinds) > 1):
            continue
        is_conv = kinds == {"conv"}
        depthwise = [node for node in nodes if is_conv and _is_depthwise(node, index)]
        if is_conv and any(attribute(n, "group", 1) > 1 and n not in depthwise for n in nodes):
            continue
        readers = tuple((node, _weight_axis(node, depthwise)) for node in nodes)
        is_alone = len(nodes) == len(index.consumers[tensor]) and tensor not in outputs
        source = _source(tensor, index, outputs, is_conv=is_conv) if is_alone else None
        if source is None and is_conv:
            continue
        sites.append(
            _Site(
                tensor=tensor,
                axis=1 if is_conv else -1,
                readers=readers,
                is_depthwise=bool(depthwise) and len(depthwise) == len(nodes),
                source=source,
            )
        )
    return sites


def _is_depthwise(node: onnx.NodeProto, index: GraphIndex) -> bool:
    dims = index.weights[node.input[1]].dims
    return bool(dims[1] == 1 and attribute(node, "group", 1) == dims[0])


def _weight_axis(node: onnx.NodeProto, depthwise: list[onnx.NodeProto]) -> int:
    if node.op_type == "Conv":
        return 0 if node in depthwise else 1
    return 1 if node.op_type == "Gemm" and attribute(node, "transB", 0) else 0


def _source(
    tensor: str, index: GraphIndex, outputs: set[str], *, is_conv: bool
) -> onnx.NodeProto | None:
    """Return the node whose constants can take the division, through nodes that pass it on."""
    node = index.producers.get(tensor)
    while node is not None and node.op_type in _HOMOGENEOUS:
        tensor = node.input[0]
        if len(index.consumers[tensor]) > 1 or tensor in outputs:
            return None
        node = index.producers.get(tensor)
    if node is None:
        return None
    weights = [name in index.weights for name in node.input]
    if node.op_type == "Conv" and is_conv:
        return node if all(weights[1:]) else None
    if node.op_type == "Gemm" and not is_conv:
        return node if all(weights[1:]) else None
    if node.op_type == "LayerNormalization" and not is_conv and len(node.output) == 1:
        return node if all(weights[1:]) and attribute(node, "axis", -1) == -1 else None
    return None


def _factors(site: _Site, amax: Channels, index: GraphIndex, migration: float) -> Channels:
    """Return s, shape (channels,); 1 for channels that were always zero."""
    live = amax > 0
    if site.source is None and not (amax.max() > INSERT_FROM * np.median(amax[live])):
        return np.ones_like(amax)
    weight = np.zeros_like(amax)
    for node, axis in site.readers:
        values = np.abs(numpy_helper.to_array(index.weights[node.input[1]]))
        others = tuple(i for i in range(values.ndim) if i != axis)
        weight = np.maximum(weight, values.max(axis=others))
    live &= weight > 0
    if not live.any():
        return np.ones_like(amax)
    migration = 1.0 if site.is_depthwise else migration
    factors = np.ones_like(amax)
    factors[live] = amax[live] ** migration / weight[live] ** (1 - migration)
    factors[live] /= np.exp(np.log(factors[live]).mean())
    return np.clip(factors, 1 / LARGEST_FACTOR, LARGEST_FACTOR).astype(np.float32)


def _divide(graph: onnx.GraphProto, site: _Site, factors: Channels, index: GraphIndex) -> None:
    node = site.source
    if node is None:
        divided = f"{site.tensor}/equalized"
        inverse = _add(graph, index, f"{site.tensor}/factors", np.reciprocal(factors))
        multiply = helper.make_node(
            "Mul", [site.tensor, inverse], [divided], name=f"{site.tensor}/equalize"
        )
        behind = list(graph.node).index(index.producers[site.tensor]) + 1
        graph.node.insert(behind, multiply)
        for reader, _ in site.readers:
            reader.input[0] = divided
        return
    for position in range(1, len(node.input)):
        values = numpy_helper.to_array(index.weights[node.input[position]])
        axis = 0
        if node.op_type == "Gemm":
            is_weight = position == 1
            axis = 0 if is_weight and attribute(node, "transB", 0) else values.ndim - 1
        node.input[position] = _add(
            graph, index, node.input[position], _scaled(values, np.reciprocal(factors), axis)
        )


def _scaled(values: AnyArray, factors: Channels, axis: int) -> AnyArray:
    shape = [1] * values.ndim
    shape[axis] = factors.size
    return np.asarray(values * factors.reshape(shape), values.dtype)


def _add(graph: onnx.GraphProto, index: GraphIndex, base: str, values: AnyArray) -> str:
    """Add a constant under a new name: the old one may have other readers."""
    name = next(n for i in range(1 << 20) if (n := f"{base}/eq{i}") not in index.weights)
    tensor = numpy_helper.from_array(np.ascontiguousarray(values), name)
    graph.initializer.append(tensor)
    index.weights[name] = tensor
    return name
