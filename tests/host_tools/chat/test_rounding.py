"""Packers of weights against what ONNX unpacks, and against plain rounding."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from host_tools.chat.quantize import (
    int4_blocks,
    packed_pairs,
    rounded_activations,
    rounded_int4,
    rounded_int8,
)

WEIGHTS = np.random.default_rng(0).normal(size=(24, 256)).astype(np.float32)


def test_packed_pairs_are_what_onnx_unpacks():
    values = int4_blocks(WEIGHTS, 64)[0]
    tensor = onnx.TensorProto(
        data_type=TensorProto.INT4, dims=values.shape, raw_data=packed_pairs(values).tobytes()
    )
    np.testing.assert_array_equal(numpy_helper.to_array(tensor).astype(np.int8), values)


def test_int8_is_off_by_half_a_step_at_most():
    step = np.abs(WEIGHTS).max(axis=1, keepdims=True) / 127
    assert (np.abs(rounded_int8(WEIGHTS) - WEIGHTS) <= step * 0.5001).all()


def test_int4_is_nearer_than_rounding_to_the_largest_value():
    blocks = WEIGHTS.reshape(24, 2, 128)
    step = np.abs(blocks).max(axis=2, keepdims=True) / 7
    plain = (np.rint(blocks / step) * step).reshape(WEIGHTS.shape)
    found = rounded_int4(WEIGHTS)
    assert np.square(found - WEIGHTS).sum() < 0.98 * np.square(plain - WEIGHTS).sum()


def test_int4_errs_less_where_it_matters_more():
    importance = np.random.default_rng(1).lognormal(sigma=2, size=256).astype(np.float32)
    costs = [
        float((np.square(rounded_int4(WEIGHTS, given) - WEIGHTS) * importance).sum())
        for given in (None, importance)
    ]
    assert costs[1] < 0.9 * costs[0]


def test_the_scale_of_importance_changes_nothing():
    importance = np.random.default_rng(1).uniform(1, 2, 256).astype(np.float32)
    np.testing.assert_array_equal(
        rounded_int4(WEIGHTS, importance), rounded_int4(WEIGHTS, importance * np.float32(1024))
    )


def test_inputs_that_no_block_divides_are_kept_as_int8():
    narrow = WEIGHTS[:, :48]
    np.testing.assert_array_equal(rounded_int4(narrow), rounded_int8(narrow))


@pytest.mark.parametrize("rounded", [rounded_int4, rounded_int8])
def test_zeros_stay_zeros(rounded):
    assert not rounded(np.zeros((4, 128), np.float32)).any()


def test_activations_are_rounded_as_onnx_does_it():
    from onnx.reference import ReferenceEvaluator

    x = np.random.default_rng(2).normal(size=(5, 64)).astype(np.float32) * 3
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        onnx.helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    scale = np.array(4.0 / 127, np.float32)
    graph = onnx.helper.make_graph(
        nodes,
        "rounded",
        [onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, x.shape)],
        [numpy_helper.from_array(scale, "s"), numpy_helper.from_array(np.int8(0), "z")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)])
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_allclose(rounded_activations(x, 4.0), expected, rtol=0, atol=1e-6)
