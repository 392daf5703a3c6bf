"""FP16 graphs against their fp32 origin in ONNX Runtime, and before TensorRT-RTX as a judge."""

from __future__ import annotations

import platform
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from calibration.errors import GraphError
from calibration.half import HALF_MAX, to_half
from calibration.model_file import profile_from_model, set_facts
from calibration.runtime import Runner
from edge.engine_builder import EngineRequest, engine_from_onnx
from edge.manifest import Provenance
from edge.self_test import relative_error
from edge.spec import Profile, ShapeRange
from edge.tensorrt_library import load_tensorrt
from tests.calibration.nets import conv_net, feeds_for, quantized, shared_input_net
from tests.models import save


def net(nodes: list[onnx.NodeProto], *weights: onnx.TensorProto) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "net", [value("x", TensorProto.FLOAT, [2, 4])],
        [value("y", TensorProto.FLOAT, ["rows", "columns"])], list(weights),
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    shape = ShapeRange(min=(2, 4), opt=(2, 4), max=(2, 4))
    facts = Provenance(source="tests", opset=17, exporter="tests", tools={})
    set_facts(model, Profile(ranges={"x": shape}), facts)
    return model


def error(model: onnx.ModelProto, half: onnx.ModelProto, feeds: dict) -> float:
    expected, got = Runner(model).run(feeds), Runner(half).run(feeds)
    assert list(expected) == list(got)
    for name, value in expected.items():
        assert got[name].dtype == value.dtype
    return max(relative_error(got[name], value) for name, value in expected.items())


def computed_in_half(model: onnx.ModelProto) -> set[str]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    half = {
        v.name for v in inferred.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT16
    }
    return {n.name for n in inferred.node if n.op_type != "Cast" and set(n.output) & half}


@pytest.mark.parametrize("make", [conv_net, shared_input_net])
def test_every_node_computes_in_half_and_answers_as_before(make: Callable) -> None:
    model = make()
    half = to_half(model)
    assert half.kept == ()
    assert computed_in_half(half.model) == {node.name for node in model.graph.node}
    assert error(model, half.model, feeds_for(model)) < 3e-3
    assert [i.type for i in half.model.graph.input] == [i.type for i in model.graph.input]


@pytest.mark.parametrize("make", [conv_net, shared_input_net])
def test_a_quantized_graph_computes_the_rest_in_half(make: Callable) -> None:
    model = quantized(make())
    half = to_half(model)
    assert error(model, half.model, feeds_for(model)) < 2e-2
    assert {"head", "q"} & computed_in_half(half.model)


def test_weights_take_half_the_bytes() -> None:
    model = conv_net()
    sizes = [
        sum(len(t.raw_data) for t in m.graph.initializer) for m in (model, to_half(model).model)
    ]
    assert sizes[1] == sizes[0] / 2


def test_nodes_are_kept_by_pattern_and_by_what_was_seen_in_them() -> None:
    model = conv_net()
    assert to_half(model, keep=["conv*"]).kept == ("conv1", "conv2")
    assert to_half(model, amax={"a": HALF_MAX}).kept == ("add", "relu2")
    for kept in (to_half(model, keep=["conv*"]), to_half(model, amax={"a": HALF_MAX})):
        assert not set(kept.kept) & computed_in_half(kept.model)
        assert error(model, kept.model, feeds_for(model)) < 3e-3


def test_squares_stay_in_range_because_pow_is_kept() -> None:
    two = numpy_helper.from_array(np.array(2, np.float32), "two")
    nodes = [
        helper.make_node("Pow", ["x", "two"], ["p"], name="pow"),
        helper.make_node("Sqrt", ["p"], ["s"], name="sqrt"),
        helper.make_node("Relu", ["s"], ["y"], name="relu"),
    ]
    model = net(nodes, two)
    half = to_half(model, amax={"p": 1e6})
    assert half.kept == ("pow", "sqrt")
    assert error(model, half.model, {"x": np.full((2, 4), 1000, np.float32)}) < 1e-3


def test_a_mask_of_minus_infinity_becomes_the_smallest_half() -> None:
    low = numpy_helper.from_array(np.array(np.finfo(np.float32).min), "low")
    model = net(
        [
            helper.make_node("Add", ["x", "low"], ["a"], name="mask"),
            helper.make_node("Softmax", ["a"], ["y"], name="softmax"),
        ],
        low,
    )
    got = Runner(to_half(model).model).run({"x": np.ones((2, 4), np.float32)})
    assert np.isfinite(got["y"]).all()


def test_values_that_nodes_make_themselves_are_half_as_well() -> None:
    shape = numpy_helper.from_array(np.array([4], np.int64), "shape")
    value = numpy_helper.from_array(np.array([0.5], np.float32))
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["c"], name="fill", value=value),
        helper.make_node("Cast", ["shape"], ["f"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "c"], ["a"], name="add"),
        helper.make_node("Mul", ["a", "f"], ["y"], name="mul"),
    ]
    model = net(nodes, shape)
    half = to_half(model).model
    assert error(model, half, {"x": np.ones((2, 4), np.float32)}) < 1e-3


def test_the_scales_of_a_resize_stay_float32() -> None:
    scales = numpy_helper.from_array(np.array([1, 2], np.float32), "scales")
    model = net([helper.make_node("Resize", ["x", "", "scales"], ["y"], name="resize")], scales)
    assert error(model, to_half(model).model, {"x": np.ones((2, 4), np.float32)}) == 0


def test_an_input_that_is_an_output_and_an_output_that_is_read_survive() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["y"], name="relu"),
        helper.make_node("Neg", ["y"], ["z"], name="neg"),
    ]
    model = net(nodes)
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [2, 4]))
    for keep in ((), ("relu",), ("neg",), ("*",)):
        half = to_half(model, keep=keep)
        assert half.kept == tuple(n.name for n in nodes if keep in {(n.name,), ("*",)})
        assert error(model, half.model, {"x": np.array([[1, -2, 3, 4]] * 2, np.float32)}) == 0


def test_control_flow_is_refused() -> None:
    inner = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["n"])], "then", [],
        [helper.make_tensor_value_info("n", TensorProto.FLOAT, [2, 4])],
    )  # fmt: skip
    yes = numpy_helper.from_array(np.array(True), "yes")
    node = helper.make_node("If", ["yes"], ["y"], name="if", then_branch=inner, else_branch=inner)
    with pytest.raises(GraphError, match="control flow"):
        to_half(net([node], yes))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="TensorRT-RTX is for x86-64 only")
@pytest.mark.parametrize("sm", ["SM86", "SM89", "SM120"])
@pytest.mark.parametrize("is_quantized", [False, True])
@pytest.mark.parametrize("make", [conv_net, shared_input_net])
def test_tensorrt_rtx_builds_it(make: Callable, is_quantized: bool, sm: str, tmp_path) -> None:
    model = quantized(make()) if is_quantized else make()
    request = EngineRequest(
        onnx=save(to_half(model).model, tmp_path / "half.onnx"),
        precision="int8" if is_quantized else "fp16",
        profiles=(profile_from_model(model),),
        compute_capabilities=(sm,),
    )
    assert engine_from_onnx(request, load_tensorrt("trt-rtx")).plan
