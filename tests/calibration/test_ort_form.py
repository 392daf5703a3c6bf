"""ONNX Runtime itself is the judge: which kernels it runs, and what they compute."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from calibration.graph import macs_by_node, prepared
from calibration.kernels import INTEGER_KERNELS, integer_mac_percent, optimized_nodes
from calibration.ort_form import ort_activations, quantize_for_ort
from calibration.placement import place
from calibration.qdq import quantize
from calibration.runtime import Runner, run_exposing
from tests.calibration.nets import IMAGE, conv_net, shared_input_net
from tests.models import model_from_nodes

IMAGES = {"x": np.random.default_rng(5).normal(0, 1, (4, *IMAGE)).astype(np.float32)}
ROWS = {"x": np.random.default_rng(6).normal(0, 1, (4, 4, 32)).astype(np.float32)}


class Mobile(nn.Module):
    """Strided, depthwise and pointwise convolutions, ReLU6, MaxPool and Concat, no biases."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.point = nn.Conv2d(8, 16, 1, bias=False)
        self.side = nn.Conv2d(8, 8, 1, bias=False)
        self.join = nn.Conv2d(24, 16, 3, bias=False)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(nn.functional.relu6(self.stem(x)), 2)
        x = torch.cat([self.point(nn.functional.relu6(self.depth(x))), self.side(x)], dim=1)
        return self.head(self.join(x).relu().mean((2, 3)))


class Perceptron(nn.Module):
    """Three Gemm layers with biases."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 5)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def exported(module: nn.Module, opset: int) -> onnx.ModelProto:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=(2 / max(1, parameter[0].numel())) ** 0.5)
    file = io.BytesIO()
    torch.onnx.export(
        module.eval(), (torch.from_numpy(IMAGES["x"]),), file, input_names=["x"],
        output_names=["y"], dynamic_axes={"x": {0: "n"}}, opset_version=opset, dynamo=False,
    )  # fmt: skip
    return prepared(onnx.load_from_string(file.getvalue()))


MODELS: dict[str, tuple[Callable[[], onnx.ModelProto], dict[str, np.ndarray], Counter[str]]] = {
    "residual": (conv_net, IMAGES, Counter(QLinearConv=2)),
    "mobile": (lambda: exported(Mobile(), 17), IMAGES, Counter(QLinearConv=5)),
    "mobile opset 13": (lambda: exported(Mobile(), 13), IMAGES, Counter(QLinearConv=5)),
    "perceptron": (lambda: exported(Perceptron(), 17), IMAGES, Counter(QGemm=2)),
    "attention": (shared_input_net, ROWS, Counter(MatMulIntegerToFloat=3)),
}
EACH_MODEL = pytest.mark.parametrize("name", MODELS)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def quantized(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> onnx.ModelProto:
    placement = place(model)
    values = run_exposing(model, feeds, ort_activations(model, placement))
    amax = {name: float(np.abs(value).max()) for name, value in values.items()}
    return quantize_for_ort(model, placement, amax)


def profiled_kernels(model: onnx.ModelProto, feeds: dict[str, np.ndarray], folder: Path) -> set:
    """Return (node name, operator) of every kernel that a profiled run executed."""
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = ort.InferenceSession(model.SerializeToString(), options)
    session.run(None, feeds)
    events = json.loads(Path(session.end_profiling()).read_bytes())
    kernels = [e for e in events if e["name"].endswith("_kernel_time")]
    # A change of memory layout appends _token_N to the node's name.
    return {(re.sub(r"(_token_\d+)?_kernel_time$", "", e["name"]), e["args"]["op_name"])
            for e in kernels}  # fmt: skip


@EACH_MODEL
def test_every_placed_node_runs_in_an_integer_kernel(name: str, tmp_path: Path) -> None:
    make, feeds, expected = MODELS[name]
    model = make()
    placed = {node.name for node in place(model).quantized}
    result = quantized(model, feeds)
    onnx.checker.check_model(result, full_check=True)
    ran = profiled_kernels(result, feeds, tmp_path)
    integer = [(node, kind) for node, kind in ran if kind in INTEGER_KERNELS]
    assert Counter(kind for _, kind in integer) == expected
    assert {node for node, _ in integer} == placed


def test_integer_kernels_do_not_saturate_on_any_cpu() -> None:
    """Rows of the largest uint8 against the largest int8: their sums pass 16 bits at once."""
    rows, columns = 64, 16
    net = model_from_nodes(
        [
            helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["x_q"]),
            helper.make_node("DequantizeLinear", ["x_q", "x_scale", "x_zero"], ["x_d"]),
            helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_d"]),
            helper.make_node("MatMul", ["x_d", "w_d"], ["y"]),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", columns])],
        {
            "x_scale": np.array(1 / 255, np.float32),
            "x_zero": np.array(0, np.uint8),
            "w": np.full((rows, columns), 127, np.int8),
            "w_scale": np.array(1 / 127, np.float32),
            "w_zero": np.array(0, np.int8),
        },
    )
    assert {node.op_type for node in optimized_nodes(net)} & INTEGER_KERNELS
    y = Runner(net, exact=False).run({"x": np.ones((4, rows), np.float32)})["y"]
    np.testing.assert_allclose(y, rows, rtol=1e-5)


@EACH_MODEL
def test_the_counted_share_of_integer_arithmetic_is_what_a_profile_shows(
    name: str, tmp_path: Path
) -> None:
    make, feeds, _ = MODELS[name]
    model = make()
    macs, result = macs_by_node(model, feeds), quantized(model, feeds)
    ran = profiled_kernels(result, feeds, tmp_path)
    integer = sum(macs[node] for node, kind in ran if kind in INTEGER_KERNELS)
    assert integer_mac_percent(result, macs) == pytest.approx(100 * integer / sum(macs.values()))


@EACH_MODEL
def test_integer_kernels_compute_what_the_graph_says(name: str) -> None:
    make, feeds, _ = MODELS[name]
    result = quantized(make(), feeds)
    (stated,) = Runner(result, exact=True).run(feeds).values()
    (fused,) = Runner(result, exact=False).run(feeds).values()
    # Requantization rounds in float here and there in fixed point: a level apart, now and then.
    assert np.linalg.norm(stated - fused) <= 0.01 * np.linalg.norm(stated)


@EACH_MODEL
def test_the_result_is_close_to_float(name: str) -> None:
    make, feeds, _ = MODELS[name]
    model = make()
    (wanted,) = Runner(model).run(feeds).values()
    (got,) = Runner(quantized(model, feeds), exact=False).run(feeds).values()
    # Min-max ranges of four random samples: the bound is 26 dB, a wrong scale is below 10.
    assert np.linalg.norm(got - wanted) <= 0.05 * np.linalg.norm(wanted)


def test_the_tensorrt_form_of_a_convolution_stays_float_in_onnx_runtime() -> None:
    """Why there are two forms; if this fails, one of them can go."""
    model = conv_net()
    placement = place(model)
    values = run_exposing(model, IMAGES, placement.activations)
    amax = {name: float(np.abs(value).max()) for name, value in values.items()}
    kinds = {node.op_type for node in optimized_nodes(quantize(model, placement, amax))}
    assert not kinds & INTEGER_KERNELS


def test_weights_and_biases_are_stored_as_integers() -> None:
    result = quantized(conv_net(), IMAGES)
    stored = {t.name: numpy_helper.to_array(t) for t in result.graph.initializer}
    source = {t.name: numpy_helper.to_array(t) for t in conv_net().graph.initializer}
    scale = np.abs(source["w1"]).max(axis=(1, 2, 3)) / 127
    np.testing.assert_allclose(stored["conv1/weight_scale"], scale, rtol=1e-6)
    np.testing.assert_array_equal(
        stored["conv1/weight_quantized"], np.rint(source["w1"] / scale.reshape(-1, 1, 1, 1))
    )
    bias_scale = scale * np.abs(IMAGES["x"]).max() / 127
    np.testing.assert_allclose(stored["conv1/bias_quantized"], source["b1"] / bias_scale, atol=0.51)
    assert not {"w1", "b1", "w2"} & set(stored)


def test_a_tensor_behind_a_relu_uses_all_256_levels_and_others_are_symmetric() -> None:
    result = quantized(conv_net(), IMAGES)
    zeros = {t.name: numpy_helper.to_array(t) for t in result.graph.initializer}
    found = {name: zeros[f"{name}_zero_point"] for name in ("x", "r1", "c2")}
    assert {zero.dtype for zero in found.values()} == {np.dtype(np.uint8)}
    assert {name: int(zero) for name, zero in found.items()} == {"x": 128, "r1": 0, "c2": 128}


def test_a_convolution_that_an_add_and_another_read_is_fused() -> None:
    model = conv_net()
    relu = next(node for node in model.graph.node if node.name == "relu1")
    model.graph.node.remove(relu)
    for node in model.graph.node:
        node.input[:] = ["c1" if name == "r1" else name for name in node.input]
    kernels = [n for n in optimized_nodes(quantized(model, IMAGES)) if n.op_type == "QLinearConv"]
    assert len(kernels) == 2


def test_a_tensor_that_is_always_zero_gets_a_positive_scale() -> None:
    model = conv_net()
    placement = place(model)
    amax = dict.fromkeys(ort_activations(model, placement), 0.0)
    result = quantize_for_ort(model, placement, amax)
    scales = [numpy_helper.to_array(t) for t in result.graph.initializer if "_scale" in t.name]
    assert all((scale > 0).all() for scale in scales)
    assert np.isfinite(Runner(result, exact=False).run(IMAGES)["logits"]).all()
