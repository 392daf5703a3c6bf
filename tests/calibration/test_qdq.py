from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper

from calibration.errors import GraphError
from calibration.graph import GraphIndex, int8_mac_percent, int8_nodes, macs_by_node
from calibration.placement import place
from calibration.qdq import quantize, with_stored_int8
from calibration.runtime import Runner, run_exposing
from edge.errors import UsageError
from tests.calibration.nets import IMAGE, conv_net, shared_input_net

FEEDS = {"x": np.random.default_rng(5).normal(0, 1, (4, *IMAGE)).astype(np.float32)}


def amax_of(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, float]:
    names = place(model).activations
    return {n: float(np.abs(v).max()) for n, v in run_exposing(model, feeds, names).items()}


def quantized(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> onnx.ModelProto:
    return quantize(model, place(model), amax_of(model, feeds))


def test_result_equals_torch_fake_quantization() -> None:
    model = conv_net()
    amax = amax_of(model, FEEDS)
    weights = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy())
               for t in model.graph.initializer}  # fmt: skip

    def fake(x: torch.Tensor, scale: float) -> torch.Tensor:
        return torch.fake_quantize_per_tensor_affine(x, scale, 0, -128, 127)

    def fake_weight(w: torch.Tensor) -> torch.Tensor:
        scale = w.abs().amax(dim=(1, 2, 3)) / 127
        zero = torch.zeros(len(scale), dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(w, scale, zero, 0, -128, 127)

    conv = torch.nn.functional.conv2d
    x = torch.from_numpy(FEEDS["x"])
    r1 = conv(fake(x, amax["x"] / 127), fake_weight(weights["w1"]), weights["b1"], padding=1).relu()
    c2 = conv(fake(r1, amax["r1"] / 127), fake_weight(weights["w2"]), padding=1)
    pooled = (c2 + r1).relu().mean(dim=(2, 3))
    expected = pooled @ weights["w3"].T + weights["b3"]

    got = Runner(quantized(model, FEEDS)).run(FEEDS)["logits"]
    # A value on the border of two levels may fall either way: one level of one activation.
    np.testing.assert_allclose(got, expected.numpy(), atol=2e-3)


def test_only_the_form_that_every_tensorrt_accepts_is_written() -> None:
    model = quantized(conv_net(), FEEDS)
    onnx.checker.check_model(model, full_check=True)
    index = GraphIndex.of(model.graph)
    pairs = [n for n in model.graph.node if n.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    assert len(pairs) == 8
    for node in pairs:
        assert len(node.input) == 3
        zero = numpy_helper.to_array(index.weights[node.input[2]])
        scale = numpy_helper.to_array(index.weights[node.input[1]])
        assert zero.dtype == np.int8
        assert not zero.any()
        assert scale.dtype == np.float32
        assert (scale > 0).all()
        of_weight = node.name.endswith(("weight_q", "weight_dq"))
        assert scale.ndim == (1 if of_weight else 0)
    for node in model.graph.node:
        if node.op_type == "Conv" and len(node.input) == 3:
            assert index.weights[node.input[2]].data_type == onnx.TensorProto.FLOAT
    assert {t.data_type for t in model.graph.initializer if t.name in {"w1", "w2"}} == {
        onnx.TensorProto.FLOAT
    }


def test_head_softmax_and_activation_products_stay_float() -> None:
    assert int8_nodes(quantized(conv_net(), FEEDS).graph) == {"conv1", "conv2"}
    assert place(conv_net()).kept_float == {"head": "head"}
    attention = shared_input_net()
    assert place(attention).kept_float == dict.fromkeys(
        ("scores", "mix"), "product of two activations"
    )


def test_macs_are_those_of_the_formula() -> None:
    macs = macs_by_node(conv_net(), FEEDS)
    assert macs == {"conv1": 4 * 8 * 64 * 27, "conv2": 4 * 8 * 64 * 72, "head": 4 * 5 * 8}
    share = int8_mac_percent(quantized(conv_net(), FEEDS), macs)
    assert share == pytest.approx(100 * (1 - macs["head"] / sum(macs.values())))


def test_stored_int8_gives_the_same_numbers_in_a_quarter_of_the_weights() -> None:
    explicit = quantized(conv_net(), FEEDS)
    stored = with_stored_int8(explicit)
    onnx.checker.check_model(stored, full_check=True)
    np.testing.assert_array_equal(
        Runner(stored).run(FEEDS)["logits"], Runner(explicit).run(FEEDS)["logits"]
    )
    names = {t.name: t.data_type for t in stored.graph.initializer}
    assert "w1" not in names
    assert names["conv1/weight_quantized"] == onnx.TensorProto.INT8
    assert int8_nodes(stored.graph) == int8_nodes(explicit.graph)


def test_consumers_of_one_activation_all_reach_integer_kernels(tmp_path) -> None:
    feeds = {"x": np.random.default_rng(0).normal(0, 1, (2, 4, 32)).astype(np.float32)}
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    model = quantized(shared_input_net(), feeds)
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimized = onnx.load(tmp_path / "optimized.onnx", load_external_data=False)
    kinds = [node.op_type for node in optimized.graph.node]
    assert kinds.count("MatMulIntegerToFloat") == 3


def test_keep_float_patterns_are_obeyed_and_checked() -> None:
    assert place(conv_net(), ["conv1"]).kept_float == {"conv1": "asked for", "head": "head"}
    with pytest.raises(UsageError, match=r"'block\*' matches no node; nodes: conv1"):
        place(conv_net(), ["block*"])


def test_a_quantized_model_is_not_quantized_again() -> None:
    with pytest.raises(GraphError, match="Q/DQ nodes already"):
        place(quantized(conv_net(), FEEDS))


def test_a_channel_of_zeros_keeps_a_positive_scale() -> None:
    model = conv_net()
    weight = next(t for t in model.graph.initializer if t.name == "w1")
    values = numpy_helper.to_array(weight).copy()
    values[3] = 0
    weight.CopyFrom(numpy_helper.from_array(values, "w1"))
    got = Runner(quantized(model, FEEDS)).run(FEEDS)["logits"]
    assert np.isfinite(got).all()
