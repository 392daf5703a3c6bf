from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from calibration.bias import bias_corrected, mean_errors
from calibration.equalize import LARGEST_FACTOR, channel_ranges, equalized
from calibration.graph import prepared
from calibration.placement import place
from calibration.qdq import quantize
from calibration.runtime import Runner, run_exposing
from tests.calibration.nets import conv_net

SPREAD = np.geomspace(0.05, 20, 16).astype(np.float32)


def constant(rng: np.random.Generator, name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array(rng.normal(0, 0.3, shape).astype(np.float32), name)


def model_of(nodes: list, shape: list, weights: list, opset: int = 17) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return prepared(model)


def depthwise_net() -> tuple[onnx.ModelProto, np.ndarray]:
    """Conv, depthwise Conv, Conv, head; the first Conv's channels differ 400-fold."""
    rng = np.random.default_rng(0)
    first = rng.normal(0, 0.3, (16, 3, 3, 3)) * SPREAD[:, None, None, None]
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="conv", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="depthwise", pads=[1] * 4, group=16),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("Conv", ["r2", "w3"], ["c3"], name="pointwise"),
        helper.make_node("GlobalAveragePool", ["c3"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w4"], ["y"], name="head"),
    ]
    weights = [
        numpy_helper.from_array(first.astype(np.float32), "w1"), constant(rng, "b1", 16),
        constant(rng, "w2", 16, 1, 3, 3), constant(rng, "w3", 8, 16, 1, 1),
        constant(rng, "w4", 8, 5),
    ]  # fmt: skip
    return model_of(nodes, ["n", 3, 8, 8], weights), rng.normal(size=(64, 3, 8, 8))


def attention_net(*, with_skip: bool) -> tuple[onnx.ModelProto, np.ndarray]:
    """LayerNormalization whose channels differ 400-fold, read by two MatMuls, and by a skip."""
    rng = np.random.default_rng(1)
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g", "b"], ["n"], name="norm", axis=-1),
        helper.make_node("MatMul", ["n", "wq"], ["q"], name="q"),
        helper.make_node("MatMul", ["n", "wk"], ["k"], name="k"),
        helper.make_node("Mul", ["q", "k"], ["m"]),
        helper.make_node("Add", ["m", "n" if with_skip else "q"], ["y"], name="skip"),
    ]
    weights = [
        numpy_helper.from_array(SPREAD, "g"), constant(rng, "b", 16),
        constant(rng, "wq", 16, 16), constant(rng, "wk", 16, 16),
    ]  # fmt: skip
    return model_of(nodes, ["n", 4, 16], weights), rng.normal(size=(64, 4, 16))


NETS = {
    "conv": depthwise_net(),
    "norm": attention_net(with_skip=False),
    "skip": attention_net(with_skip=True),
}


def feeds_of(x: np.ndarray) -> dict[str, np.ndarray]:
    return {"x": x.astype(np.float32)}


def equalized_on(model: onnx.ModelProto, batches: list) -> onnx.ModelProto | None:
    placement = place(model)
    return equalized(model, placement, channel_ranges(model, placement, batches))


def sqnr(model: onnx.ModelProto, reference: onnx.ModelProto, x: np.ndarray) -> float:
    """Min-max calibration of a model on x, and the SQNR to the reference on it."""
    placement, feeds = place(model), feeds_of(x)
    seen = run_exposing(model, feeds, placement.activations)
    amax = {name: float(np.abs(seen[name]).max()) for name in placement.activations}
    wanted = Runner(reference).run(feeds)["y"]
    got = Runner(quantize(model, placement, amax)).run(feeds)["y"]
    return float(10 * np.log10(np.square(wanted).sum() / np.square(wanted - got).sum()))


@pytest.mark.parametrize("name", NETS)
def test_an_equalized_model_computes_the_same_and_loses_less_in_int8(name: str) -> None:
    model, x = NETS[name]
    changed = equalized_on(model, [feeds_of(x)])
    assert changed is not None
    wanted = Runner(model).run(feeds_of(x))["y"]
    got = Runner(changed).run(feeds_of(x))["y"]
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())
    assert sqnr(changed, model, x) > sqnr(model, model, x) + 6


@pytest.mark.parametrize(("name", "inserted"), [("conv", 0), ("norm", 0), ("skip", 1)])
def test_a_mul_is_inserted_only_where_nothing_can_take_the_division(
    name: str, inserted: int
) -> None:
    model, x = NETS[name]
    changed = equalized_on(model, [feeds_of(x)])
    before, after = (sum(n.op_type == "Mul" for n in m.graph.node) for m in (model, changed))
    assert after - before == inserted


def test_the_channels_of_a_depthwise_input_become_equal() -> None:
    model, x = NETS["conv"]
    changed = equalized_on(model, [feeds_of(x)])
    for graph, largest_ratio in ((model, 100.0), (changed, LARGEST_FACTOR / 10)):
        activation = place(graph).quantized[1].activation
        seen = run_exposing(graph, feeds_of(x), [activation])[activation]
        channels = np.abs(seen).max(axis=(0, 2, 3))
        assert (channels.max() / channels.min() > largest_ratio) == (graph is model)


def test_one_strange_batch_does_not_decide() -> None:
    model, x = NETS["conv"]
    batches = [feeds_of(rows) for rows in np.split(x, 8)]
    strange = {"x": batches[3]["x"] * np.float32(1000)}
    spoiled = [*batches[:3], strange, *batches[4:]]
    clean, other = (equalized_on(model, b) for b in (batches, spoiled))
    assert sqnr(other, model, x) > sqnr(clean, model, x) - 1


def test_a_model_with_nothing_to_move_is_left_alone() -> None:
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"], name="a")]
    nodes += [helper.make_node("Mul", ["m", "m"], ["y"])]
    model = model_of(nodes, ["n", 16], [constant(rng, "w", 16, 16)])
    assert equalized_on(model, [feeds_of(rng.normal(size=(4, 16)))]) is None


def test_errors_are_the_means_that_torch_would_measure_with_each_one_taken_out_in_turn() -> None:
    import torch

    model, x = NETS["conv"]
    placement = place(model)
    seen = run_exposing(model, feeds_of(x), placement.activations)
    amax = {n: float(np.abs(seen[n]).max()) for n in placement.activations}
    quantized = quantize(model, placement, amax)
    found = mean_errors(model, quantized, placement, [feeds_of(x)])
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    assert list(found) == ["conv", "depthwise", "pointwise"]
    value = got = torch.tensor(x.astype(np.float32))
    biases = {"conv": torch.tensor(weights["b1"])}
    for node in placement.quantized:
        weight, bias = torch.tensor(weights[node.weight]), biases.get(node.name)
        rounded = torch.fake_quantize_per_channel_affine(
            weight, weight.abs().amax((1, 2, 3)) / 127, torch.zeros(len(weight)).int(), 0, -128, 127
        )
        clipped = torch.fake_quantize_per_tensor_affine(
            got, amax[node.activation] / 127, 0, -128, 127
        )
        options = {"padding": weight.shape[-1] // 2, "groups": 16 if weight.shape[1] == 1 else 1}
        value = torch.conv2d(value, weight, bias, **options)
        got = torch.conv2d(clipped, rounded, bias, **options)
        error = (got - value).mean((0, 2, 3))
        scale = float(value.abs().mean())
        np.testing.assert_allclose(found[node.name], error, atol=1e-3 * scale)
        value, got = value.relu(), (got - error[:, None, None]).relu()


@pytest.mark.parametrize("name", ["norm", "skip"])
def test_a_product_without_a_bias_behind_it_has_no_place_for_an_error(name: str) -> None:
    model, x = NETS[name]
    placement = place(model)
    seen = run_exposing(model, feeds_of(x), placement.activations)
    amax = {n: float(np.abs(seen[n]).max()) for n in placement.activations}
    quantized = quantize(model, placement, amax)
    assert mean_errors(model, quantized, placement, [feeds_of(x)]) == {}


@pytest.mark.parametrize("opset", [17, 18])
def test_the_bias_behind_a_product_is_corrected(opset: int) -> None:
    rng = np.random.default_rng(5)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="product"),
        helper.make_node("Add", ["m", "b"], ["s"], name="bias"),
        helper.make_node("Mul", ["s", "s"], ["y"], name="square"),
    ]
    shapes = ("w", (16, 24)), ("b", (24,))
    weights = [constant(rng, name, *shape) for name, shape in shapes]
    model = model_of(nodes, ["n", 4, 16], weights, opset)
    placement = place(model)
    x = np.abs(rng.normal(size=(64, 4, 16)))
    quantized = quantize(model, placement, {"x": 0.7 * float(x.max())})
    found = mean_errors(model, quantized, placement, [feeds_of(x)])
    expected = (
        run_exposing(quantized, feeds_of(x), ["m"])["m"]
        - run_exposing(model, feeds_of(x), ["m"])["m"]
    ).mean(axis=(0, 1))
    np.testing.assert_allclose(found["product"], expected, atol=1e-5)
    corrected = bias_corrected(model, placement, found)
    bias = {t.name: numpy_helper.to_array(t) for t in corrected.graph.initializer}
    name = next(n for n in corrected.graph.node if n.name == "bias").input[1]
    np.testing.assert_allclose(
        bias[name], numpy_helper.to_array(weights[1]) - expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("opset", [17, 18])
def test_corrected_biases_bring_the_outputs_closer(opset: int) -> None:
    model = prepared(conv_net())
    model.opset_import[0].version = opset
    x = np.random.default_rng(3).normal(size=(64, 3, 8, 8))
    output = model.graph.output[0].name
    placement = place(model)
    seen = run_exposing(model, feeds_of(x), placement.activations)
    amax = {n: float(np.abs(seen[n]).max()) for n in placement.activations}
    quantized = quantize(model, placement, amax)
    errors = mean_errors(model, quantized, placement, [feeds_of(x[:32])])
    wanted = Runner(model).run(feeds_of(x))[output]

    def distance(source: onnx.ModelProto) -> float:
        got = Runner(quantize(source, placement, amax)).run(feeds_of(x))[output]
        return float(np.square(got - wanted).sum())

    corrected = bias_corrected(model, placement, errors)
    assert distance(corrected) < 0.5 * distance(model)
    nothing = bias_corrected(model, placement, {})
    assert distance(nothing) == distance(model)
