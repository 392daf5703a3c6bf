from __future__ import annotations

import functools

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from calibration.errors import GraphError
from calibration.graph import GraphIndex, int8_mac_percent, int8_nodes, macs_by_node
from calibration.placement import place, shared_ranges
from calibration.qdq import quantize, with_stored_int8
from calibration.runtime import Runner, run_exposing
from edge.errors import UsageError
from tests.calibration.nets import IMAGE, conv_net, shared_input_net
from tests.calibration.test_ort_form import exported

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
    pooled = (c2 + fake(r1, amax["r1"] / 127)).relu().mean(dim=(2, 3))
    expected = pooled @ weights["w3"].T + weights["b3"]

    got = Runner(quantized(model, FEEDS)).run(FEEDS)["logits"]
    # A value on the border of two levels may fall either way: one level of one activation.
    np.testing.assert_allclose(got, expected.numpy(), atol=2e-3)


@pytest.mark.parametrize(
    ("rows", "stays"), [("batch", False), (1, True), (8, False)], ids=["any", "one", "eight"]
)
def test_a_product_that_always_has_one_row_stays_float(rows: str | int, stays: bool) -> None:
    rng = np.random.default_rng(0)
    weights = {
        name: numpy_helper.from_array(rng.normal(size=(32, 32)).astype(np.float32), name)
        for name in ("a", "b", "c")
    }
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["many", "b"], ["m"], name="second"),
        helper.make_node("Add", ["m", "r"], ["s"], name="sum"),
        helper.make_node("Sigmoid", ["s"], ["g"], name="gate"),
        helper.make_node("MatMul", ["g", "c"], ["y"], name="head"),
    ]
    value = functools.partial(helper.make_tensor_value_info, elem_type=TensorProto.FLOAT)
    graph = helper.make_graph(
        nodes, "rows", [value("x", shape=[rows, 32]), value("many", shape=["n", 32])],
        [value("y", shape=None)], list(weights.values()),
    )  # fmt: skip
    kept = place(helper.make_model(graph)).kept_float
    assert ("first" in kept) is stays
    assert "second" not in kept


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
    net = shared_input_net()
    model = quantize(net, place(net), amax_of(net, feeds), share_pairs=False)
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimized = onnx.load(tmp_path / "optimized.onnx", load_external_data=False)
    kinds = [node.op_type for node in optimized.graph.node]
    assert kinds.count("MatMulIntegerToFloat") == 3


def test_readers_of_one_tensor_share_a_pair_for_tensorrt() -> None:
    feeds = {"x": np.random.default_rng(0).normal(0, 1, (2, 4, 32)).astype(np.float32)}
    model = quantized(shared_input_net(), feeds)
    index = GraphIndex.of(model.graph)
    readers = {node.name: node.input[0] for node in model.graph.node if node.name in "qkv"}
    assert len(readers) == 3
    assert len(set(readers.values())) == 1
    assert index.producers[readers["q"]].op_type == "DequantizeLinear"


def residual(shortcut: bool) -> nn.Module:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.one = nn.Conv2d(8, 8, 3, padding=1)
            self.two = nn.Conv2d(8, 8, 3, padding=1)
            self.side = nn.Conv2d(8, 8, 1) if shortcut else nn.Identity()
            self.last = nn.Conv2d(8, 8, 3)
            self.head = nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x).relu()
            x = (self.side(x) + self.two(self.one(x).relu())).relu()
            return self.head(self.last(x).relu().mean((2, 3)))

    return Block()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("shortcut", [False, True])
def test_only_the_skip_edge_of_a_residual_sum_is_quantized(shortcut: bool) -> None:
    model = exported(residual(shortcut), 17)
    placement = place(model)
    (skip,) = placement.skips
    index = GraphIndex.of(model.graph)
    assert index.producers[skip.tensor].op_type == ("Conv" if shortcut else "Relu")
    assert not shortcut or "side" in index.producers[skip.tensor].name
    written = quantized(model, FEEDS)
    index = GraphIndex.of(written.graph)
    (add,) = [node for node in written.graph.node if node.op_type == "Add"]
    kinds = sorted(index.producers[name].op_type for name in add.input)
    assert kinds == ["Conv", "DequantizeLinear"]
    if not shortcut:  # one Q serves the convolution and the sum
        one = next(n for n in written.graph.node if n.name.endswith("/one/Conv"))
        assert one.input[0] in add.input


def test_a_sum_without_a_convolution_of_its_own_stays_float() -> None:
    assert place(shared_input_net()).skips == ()
    model = conv_net()
    assert len(place(model).skips) == 1
    assert place(model, ["conv2"]).skips == ()


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


def test_tensors_that_a_concat_joins_get_one_range() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="a", pads=[1] * 4),
        helper.make_node("Conv", ["a", "w2"], ["b"], name="b", pads=[1] * 4),
        helper.make_node("Concat", ["a", "b"], ["c"], axis=1),
        helper.make_node("Concat", ["c", "x"], ["d"], axis=1),
        helper.make_node("Concat", ["u", "v"], ["w"], axis=1),
    ]
    graph = helper.make_graph(nodes, "net", [], [])
    assert shared_ranges(graph, ("a", "c", "d")) == (("a", "c", "d"),)
    assert shared_ranges(graph, ("a", "b", "x")) == (("a", "b"),)
    assert shared_ranges(graph, ("b", "x", "d", "c", "u", "w")) == (
        ("b", "c", "d", "x"),
        ("u", "w"),
    )
    assert shared_ranges(graph, ("a", "u")) == ()
