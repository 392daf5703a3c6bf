"""Each rule finds its problem, names the node, and TensorRT-RTX agrees where it can be asked."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from calibration.half import to_half
from calibration.lint import lint
from calibration.ort_form import ort_activations, quantize_for_ort
from calibration.placement import has_few_channels, place
from calibration.qdq import quantize, with_stored_int8
from tests.calibration.nets import amax_of, conv_net, quantized, shared_input_net


def initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


def replace_initializer(model: onnx.ModelProto, name: str, value: np.ndarray) -> None:
    initializer(model, name).CopyFrom(numpy_helper.from_array(value, name))


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.name == name)


def codes(model: onnx.ModelProto, target: str = "any") -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for f in lint(model, target):  # type: ignore[arg-type]
        found.setdefault(f.code, (f.level, f.node))
    return found


@pytest.mark.parametrize("target", ["any", "jetpack5", "jetpack6", "jetpack7", "rtx"])
@pytest.mark.parametrize("make", [conv_net, shared_input_net])
def test_what_calibrate_writes_has_no_error_anywhere(make: Callable, target: str) -> None:
    model = quantized(make())
    model.opset_import[0].version = 16
    assert [f for f in lint(model, target) if f.level == "error"] == []  # type: ignore[arg-type]
    assert lint(model, target) == ()  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [conv_net, shared_input_net])
def test_the_typed_forms_have_no_error_for_who_reads_them(make: Callable) -> None:
    for model in (to_half(make()).model, to_half(quantized(make())).model):
        for target in ("jetpack7", "rtx"):
            assert codes(model, target) == {}


def test_the_form_for_onnx_runtime_is_not_for_tensorrt() -> None:
    model = conv_net()
    placement = place(model)
    ranges = amax_of(model, ort_activations(model, placement))
    found = codes(quantize_for_ort(model, placement, ranges))
    assert found["zero-point-type"][0] == "error"


def test_a_zero_point_must_be_int8_zero_constant_and_there() -> None:
    model = quantized(conv_net())
    replace_initializer(model, "x/int8_zero_point", np.array(3, np.int8))
    assert codes(model)["zero-point"] == ("error", "x/int8_q")
    replace_initializer(model, "x/int8_zero_point", np.array(0, np.uint8))
    assert codes(model)["zero-point-type"] == ("error", "x/int8_q")
    del node(model, "x/int8_q").input[2]
    assert codes(model)["zero-point-missing"] == ("error", "x/int8_q")
    assert "zero-point-missing" not in codes(model, "jetpack7")
    model = quantized(conv_net())
    node(model, "x/int8_q").input[2] = "x"
    assert codes(model)["zero-point-computed"] == ("error", "x/int8_q")


def test_an_int32_bias_is_named_as_that() -> None:
    model = quantized(conv_net())
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.zeros(8, np.int32), "bias"),
            numpy_helper.from_array(np.zeros(8, np.int32), "bias_zero"),
            numpy_helper.from_array(np.ones(8, np.float32), "bias_scale"),
        ]
    )
    pair = helper.make_node(
        "DequantizeLinear", ["bias", "bias_scale", "bias_zero"], ["b"], name="bias_dq", axis=0
    )
    model.graph.node.insert(0, pair)
    (found,) = [f for f in lint(model) if f.code == "zero-point-type"]
    assert "int32 biases" in found.message
    assert "leave the bias in float" in found.message


@pytest.mark.parametrize("value", [0.0, -1.0, np.inf, np.nan])
def test_a_scale_must_be_positive(value: float) -> None:
    model = quantized(conv_net())
    replace_initializer(model, "x/int8_scale", np.array(value, np.float32))
    assert codes(model)["scale"] == ("error", "x/int8_q")


def test_an_activation_has_one_scale() -> None:
    model = quantized(conv_net())
    replace_initializer(model, "x/int8_scale", np.ones(3, np.float32))
    replace_initializer(model, "x/int8_zero_point", np.zeros(3, np.int8))
    assert codes(model)["per-channel-activation"] == ("error", "x/int8_q")


def test_stored_weights_are_for_later_versions_only() -> None:
    model = with_stored_int8(quantized(conv_net()))
    assert codes(model, "jetpack6")["weight-stored"] == ("error", "conv1/weight_dq")
    assert "weight-stored" not in codes(model, "rtx")


def test_a_product_with_one_quantized_operand_is_found() -> None:
    model = quantized(conv_net())
    node(model, "conv1").input[1] = "w1"
    assert codes(model)["half-quantized"] == ("warning", "conv1")


def test_a_pair_before_the_activation_is_found() -> None:
    model = quantized(conv_net())
    parameters = ["x/int8_scale", "x/int8_zero_point"]
    pair = [
        helper.make_node("QuantizeLinear", ["c1", *parameters], ["c1_q"], name="early"),
        helper.make_node("DequantizeLinear", ["c1_q", *parameters], ["c1_dq"]),
    ]
    place = list(model.graph.node).index(node(model, "relu1"))
    for new in reversed(pair):
        model.graph.node.insert(place, new)
    node(model, "relu1").input[0] = "c1_dq"
    assert codes(model)["before-activation"] == ("warning", "early")


def test_both_operands_of_a_sum_are_found() -> None:
    model = quantized(conv_net())
    pair = [
        helper.make_node("QuantizeLinear", ["c2", "x/int8_scale", "x/int8_zero_point"], ["c2_q"]),
        helper.make_node("DequantizeLinear", ["c2_q", "x/int8_scale", "x/int8_zero_point"], ["d2"]),
    ]  # fmt: skip
    place = list(model.graph.node).index(node(model, "add"))
    for new in reversed(pair):
        model.graph.node.insert(place, new)
    node(model, "add").input[0] = "d2"
    assert codes(model)["both-operands"] == ("warning", "add")


def test_several_pairs_on_one_tensor_are_found() -> None:
    model = shared_input_net()
    placement = place(model)
    written = quantize(model, placement, amax_of(model, placement.activations), share_pairs=False)
    assert codes(written)["several-pairs"][0] == "warning"


def test_softmax_behind_a_pair_is_found() -> None:
    model = quantized(shared_input_net())
    parameters = ["x/int8_scale", "x/int8_zero_point"]
    place = list(model.graph.node).index(node(model, "softmax"))
    model.graph.node.insert(
        place, helper.make_node("DequantizeLinear", ["s_q", *parameters], ["s_dq"])
    )
    model.graph.node.insert(place, helper.make_node("QuantizeLinear", ["s", *parameters], ["s_q"]))
    node(model, "softmax").input[0] = "s_dq"
    assert codes(model)["float-operator"] == ("warning", "softmax")


def test_inputs_of_a_concat_with_different_scales_are_found() -> None:
    value = helper.make_tensor_value_info
    scales = [numpy_helper.from_array(np.array(s, np.float32), f"s{s}") for s in (1, 2)]
    zero = numpy_helper.from_array(np.array(0, np.int8), "z")
    nodes = []
    for s in (1, 2):
        nodes.append(helper.make_node("QuantizeLinear", ["x", f"s{s}", "z"], [f"q{s}"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"q{s}", f"s{s}", "z"], [f"d{s}"]))
    nodes.append(helper.make_node("Concat", ["d1", "d2"], ["y"], name="concat", axis=0))
    graph = helper.make_graph(
        nodes, "net", [value("x", TensorProto.FLOAT, [1, 4])],
        [value("y", TensorProto.FLOAT, [2, 4])], [*scales, zero],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    assert codes(model)["concat-scales"] == ("warning", "concat")


def test_opset_operator_and_domain_are_judged_by_target() -> None:
    model = conv_net()
    assert "opset" not in codes(model, "jetpack6")
    assert codes(model, "jetpack5")["opset"][0] == "error"
    node(model, "relu1").op_type = "HardSwish"
    assert codes(model, "jetpack5")["operator"] == ("error", "relu1")
    assert "operator" not in codes(model, "rtx")
    node(model, "relu1").domain = "com.microsoft"
    assert codes(model)["domain"] == ("error", "relu1")


def test_weights_in_another_file_are_named() -> None:
    model = conv_net()
    initializer(model, "w1").data_location = TensorProto.EXTERNAL
    assert codes(model)["external-data"][0] == "warning"


def test_errors_come_first_and_every_message_names_a_way_out() -> None:
    model = quantized(conv_net())
    node(model, "conv1").input[1] = "w1"
    replace_initializer(model, "r1/int8_scale", np.array(0, np.float32))
    levels = [f.level for f in lint(model)]
    assert levels == sorted(levels)
    assert set(levels) == {"error", "warning"}
    assert all(len(f.message) > 20 for f in lint(model))


@pytest.mark.parametrize(
    ("operator", "dims", "group", "is_few"),
    [
        ("Conv", (32, 3, 7, 7), 1, False),  # reads an image
        ("Conv", (8, 8, 3, 3), 1, False),  # a multiple of 8 and square
        ("Conv", (32, 8, 1, 3), 1, True),
        ("Conv", (32, 12, 3, 3), 1, True),
        ("Conv", (10, 64, 1, 1), 1, True),
        ("Conv", (12, 1, 3, 3), 12, False),  # depthwise
        ("ConvTranspose", (64, 10, 2, 2), 1, True),
        ("MatMul", (768, 768), 1, False),
        ("MatMul", (12, 768), 1, True),
        ("Gemm", (10, 64), 1, True),
    ],
)
def test_layers_with_few_channels_are_named_and_left_float(
    operator: str, dims: tuple, group: int, is_few: bool
) -> None:
    node = helper.make_node(operator, ["x", "w"], ["y"], name="n")
    if group > 1:
        node.attribute.append(helper.make_attribute("group", group))
    assert has_few_channels(node, dims) == is_few
