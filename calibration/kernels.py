"""What ONNX Runtime really runs for a quantized graph: the kernels after its optimiser."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import onnx

from calibration.errors import GraphError
from edge.errors import first_line
from edge.onnxruntime_library import load_onnxruntime, onnxruntime_errors, session_options

INTEGER_KERNELS = frozenset(
    {
        "ConvInteger",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "QGemm",
        "QLinearConv",
        "QLinearMatMul",
    }
)


def optimized_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the nodes ONNX Runtime runs on this CPU, fused nodes under their old names.

    Raises GraphError if it cannot open the model.
    """
    ort = load_onnxruntime()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        options = session_options(ort)
        options.log_severity_level = 4
        # One level below ALL, which only adds memory layouts that a file cannot hold.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(path)
        try:
            ort.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except onnxruntime_errors() as error:
            raise GraphError(f"ONNX Runtime cannot open the model: {first_line(error)}") from error
        return list(onnx.load(path).graph.node)


def integer_mac_percent(model: onnx.ModelProto, macs: Mapping[str, int]) -> float:
    """Return the share of multiply-accumulates that run in integer kernels here, in percent.

    macs: multiply-accumulates per compute node of the float model, see `graph.macs_by_node`.
    """
    integer = {node.name for node in optimized_nodes(model) if node.op_type in INTEGER_KERNELS}
    return (
        100.0 * sum(count for name, count in macs.items() if name in integer) / sum(macs.values())
    )
