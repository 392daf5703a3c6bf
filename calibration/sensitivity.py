"""How much each node costs in accuracy when it alone is quantized.

Leave one in: for every candidate, the SQNR of the model's outputs with this node in int8 and all
others in float. Everything before the node is the float model, so its results are taken from one
float run and only the rest of the graph is computed: N nodes cost about N / 2 runs of few samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import onnx
from onnx import helper

from calibration.compare import Comparison
from calibration.errors import GraphError
from calibration.parts import row_count
from calibration.placement import Placement, QuantizedNode
from calibration.qdq import quantize
from calibration.runtime import Runner, with_outputs
from edge.spec import AnyArray, Feeds

SILENT_DB = 200.0
Tick = Callable[[int, int], None]


def sensitivity(
    model: onnx.ModelProto,
    placement: Placement,
    amax: Mapping[str, float],
    batches: Iterable[Feeds],
    *,
    tick: Tick = lambda done, total: None,
) -> dict[str, float]:
    """Return the SQNR in dB of the worst float output, per quantized node; lower costs more.

    batches: a few, they stay in memory with all inner tensors, one batch at a time.
    Raises GraphError if the model has no float output.
    """
    outputs = _float_outputs(model)
    tensors = [name for node in model.graph.node for name in node.output if name]
    exposed = Runner(with_outputs(model, tensors))
    compared = {node.name: {out: Comparison() for out in outputs} for node in placement.quantized}
    all_batches = list(batches)
    total, done = len(compared) * len(all_batches), 0
    for feeds in all_batches:
        values: dict[str, AnyArray] = {**feeds, **exposed.run(feeds)}
        rows = row_count(feeds)
        for node in placement.quantized:
            rest = _rest(model, node, amax, values)
            got = Runner(rest).run({i.name: values[i.name] for i in rest.graph.input})
            for out in outputs:
                if out in got:
                    compared[node.name][out].update(got[out], values[out], rows)
            done += 1
            tick(done, total)
    return {
        name: min((c.sqnr_db for c in by_output.values() if c.rows), default=SILENT_DB)
        for name, by_output in compared.items()
    }


def _float_outputs(model: onnx.ModelProto) -> tuple[str, ...]:
    float_kinds = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE}
    names = tuple(o.name for o in model.graph.output if o.type.tensor_type.elem_type in float_kinds)
    if not names:
        raise GraphError("the model has no float output whose error could be measured")
    return names


def _rest(
    model: onnx.ModelProto,
    node: QuantizedNode,
    amax: Mapping[str, float],
    values: Mapping[str, AnyArray],
) -> onnx.ModelProto:
    """Return the graph from a node on, with this node quantized, reading float tensors.

    values: of every tensor before it, for their types.
    """
    nodes = list(model.graph.node)
    kept = nodes[next(i for i, n in enumerate(nodes) if n.name == node.name) :]
    made = {name for n in kept for name in n.output}
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    used = dict.fromkeys(name for n in kept for name in n.input if name)
    graph = helper.make_graph(
        kept,
        "rest",
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(values[name].dtype), None
            )
            for name in used
            if name not in made and name not in weights
        ],
        [output for output in model.graph.output if output.name in made],
        [tensor for name, tensor in weights.items() if name in used],
    )
    rest = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    return quantize(rest, Placement(quantized=(node,), kept_float={}), amax)
