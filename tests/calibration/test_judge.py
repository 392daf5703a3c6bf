"""The gate must be able to fail: what it cannot judge, it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from calibration.calibrate import HeldOut, calibrate
from calibration.compare import Comparison
from calibration.errors import CalibrationError, GraphError
from calibration.gate import Gate, gate_problems
from calibration.graph import prepared
from calibration.placement import HEAD, place
from calibration.runtime import Runner
from calibration.samples import open_samples
from edge.errors import UsageError
from tests.calibration.nets import IMAGE, conv_net, write_samples


def with_tail(*nodes: onnx.NodeProto, kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """Return conv_net with more nodes behind its logits; the last one gives "y"."""
    model = conv_net()
    model.graph.node.extend(nodes)
    del model.graph.output[:]
    model.graph.output.append(onnx.ValueInfoProto(name="y"))
    model.graph.output[0].type.tensor_type.elem_type = kind
    return model


def run(tmp_path: Path, model: onnx.ModelProto, labels: np.ndarray | None = None):
    held = HeldOut(
        samples=open_samples(write_samples(tmp_path / "h.npz", 32, seed=3)), labels=labels
    )
    samples = open_samples(write_samples(tmp_path / "s.npz", 64))
    return calibrate(model, samples, method="minmax", held_out=held)


@pytest.mark.parametrize(("label", "place_"), [(5, 7), (-1, 0), (2**40, 31)])
def test_a_label_outside_the_classes_is_named(tmp_path: Path, label: int, place_: int) -> None:
    labels = np.zeros(32, np.int64)
    labels[place_] = label
    with pytest.raises(CalibrationError, match=rf"label {label} of held-out sample {place_} is"):
        run(tmp_path, conv_net(), labels)


def test_labels_need_an_output_of_classes(tmp_path: Path) -> None:
    single = with_tail(helper.make_node("ReduceMax", ["logits"], ["y"], axes=[1], keepdims=1))
    with pytest.raises(CalibrationError, match=r"\(batch, classes\).* without --labels"):
        run(tmp_path, single, np.zeros(32, np.int64))


def test_class_numbers_alone_cannot_be_compared(tmp_path: Path) -> None:
    chosen = with_tail(
        helper.make_node("ArgMax", ["logits"], ["y"], axis=1), kind=TensorProto.INT64
    )
    with pytest.raises(GraphError, match=r"no float output.*without its final ArgMax"):
        run(tmp_path, chosen)


def test_only_a_classifier_is_judged_by_its_top_class(tmp_path: Path) -> None:
    assert run(tmp_path, conv_net()).ort.accuracy.argmax_agreement_percent is not None
    single = with_tail(helper.make_node("ReduceMax", ["logits"], ["y"], axes=[1], keepdims=1))
    assert run(tmp_path, single).ort.accuracy.argmax_agreement_percent is None


def test_an_output_without_a_batch_axis_is_compared_whole(tmp_path: Path) -> None:
    scalar = with_tail(helper.make_node("ReduceMean", ["logits"], ["y"], keepdims=0))
    accuracy = run(tmp_path, scalar).ort.accuracy
    assert accuracy.samples == 32
    assert accuracy.argmax_agreement_percent is None


def test_an_output_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    log = with_tail(helper.make_node("Log", ["logits"], ["y"]))
    with pytest.raises(CalibrationError, match="'y' of the float model is not finite"):
        run(tmp_path, log)


@pytest.mark.parametrize(
    "limits",
    [{"max_top1_drop": np.nan}, {"min_cosine": np.nan}, {"min_agreement_percent": np.nan}],
)
def test_a_limit_that_is_no_number_never_passes(tmp_path: Path, limits: dict[str, float]) -> None:
    labels = np.zeros(32, np.int64) if "max_top1_drop" in limits else None
    accuracy = run(tmp_path, conv_net(), labels).ort.accuracy
    assert gate_problems(accuracy, Gate(max_top1_drop=100.0)) == []
    assert len(gate_problems(accuracy, Gate(**limits))) == 1


def test_samples_fewer_than_the_fixed_batch_are_one_clear_line(tmp_path: Path) -> None:
    model = conv_net(batch=16)
    few = open_samples(write_samples(tmp_path / "few.npz", 20))
    with pytest.raises(UsageError, match="20 samples are too few: 32 at least"):
        calibrate(model, few)
    enough = open_samples(write_samples(tmp_path / "enough.npz", 40))
    assert calibrate(model, enough, method="minmax").ort.accuracy.samples == 16
    held = HeldOut(samples=few)
    result = calibrate(model, enough, method="minmax", held_out=held)
    assert result.ort.accuracy.samples == 16  # the last four are no batch
    short = HeldOut(samples=open_samples(write_samples(tmp_path / "short.npz", 9)))
    with pytest.raises(CalibrationError, match="held-out samples are fewer than one batch of 16"):
        calibrate(model, enough, method="minmax", held_out=short)


def test_an_input_whose_first_axis_is_not_the_batch_is_named(tmp_path: Path) -> None:
    model = conv_net()
    model.graph.input.append(helper.make_tensor_value_info("scale", TensorProto.FLOAT, [1]))
    model.graph.node.append(helper.make_node("Mul", ["logits", "scale"], ["y"], name="mul"))
    model.graph.output[0].name = "y"
    del model.metadata_props[:]
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    samples = open_samples(write_samples(tmp_path / "s.npz", 64, scale=np.ones(64, np.float32)))
    with pytest.raises(GraphError, match=r"input 'scale' has the shape \[1\]"):
        calibrate(model, samples)


def test_rows_of_zeros_are_equal_and_a_lost_row_is_not() -> None:
    zeros, ones = np.zeros((1, 3)), np.ones((1, 3))
    equal, lost = Comparison(), Comparison()
    equal.update(zeros, zeros, 1)
    lost.update(zeros, ones, 1)
    assert (equal.cosine_mean, lost.cosine_mean) == (1.0, 0.0)


@pytest.mark.parametrize(
    "tail",
    [
        [helper.make_node("Softmax", ["logits"], ["y"])],
        [helper.make_node("Transpose", ["logits"], ["t"]), helper.make_node("Tanh", ["t"], ["y"])],
        [helper.make_node("Cast", ["logits"], ["y"], to=TensorProto.DOUBLE)],
        [helper.make_node("ArgMax", ["logits"], ["y"], axis=1)],
    ],
)
def test_the_head_is_found_behind_what_follows_it(tail: list[onnx.NodeProto]) -> None:
    assert place(prepared(with_tail(*tail))).kept_float == {"head": HEAD}


def test_weights_in_constant_nodes_are_quantized_and_names_made_unique() -> None:
    model = conv_net()
    weight = next(t for t in model.graph.initializer if t.name == "w1")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w1"], value=weight))
    model.graph.initializer.remove(weight)
    names = ["", "Conv_1", "Conv_1", "add", "", "", "", "head"]
    for node, name in zip(list(model.graph.node)[1:], names, strict=True):
        node.name = name
    result = prepared(model)
    assert len({node.name for node in result.graph.node}) == len(result.graph.node)
    assert {node.weight for node in place(result).quantized} == {"w1", "w2"}
    feeds = {"x": np.random.default_rng(0).normal(0, 1, (2, *IMAGE)).astype(np.float32)}
    np.testing.assert_array_equal(
        Runner(result).run(feeds)["logits"], Runner(conv_net()).run(feeds)["logits"]
    )


def test_a_product_of_a_constant_on_the_left_stays_float_with_a_true_reason() -> None:
    model = conv_net()
    left = numpy_helper.from_array(np.ones((3, 3), np.float32), "left")
    model.graph.initializer.append(left)
    model.graph.node.append(helper.make_node("MatMul", ["left", "right"], ["l"], name="left"))
    model.graph.initializer.append(numpy_helper.from_array(np.ones((3, 2), np.float32), "right"))
    assert place(model).kept_float["left"] == "weight in a form that is not quantized"
