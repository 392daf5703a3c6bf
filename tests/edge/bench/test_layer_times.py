"""Layer times of ONNX Runtime and TensorRT, and `edge-agent profile`."""

from __future__ import annotations

import json

import numpy as np
import pytest
from onnx import TensorProto, helper

from edge.bench.layer_times import profile_model
from edge.bench.opened import model_in, verified_bundle
from edge.bench.ort_trace import layers_from_file, layers_from_trace
from edge.bench.table import MAX_COLUMNS
from edge.bench.trt_layers import layers_from_times
from edge.errors import InferenceError
from edge.ort_session import OrtSession
from edge.spec import Profile, TensorSpec
from tests.agents import make_config
from tests.edge.test_cli import run
from tests.models import model_from_nodes, save


def test_the_layers_of_a_real_trace_are_the_nodes_that_ran(tmp_path):
    bundle = verified_bundle(make_config(tmp_path))
    model = model_in(bundle, None)
    session = OrtSession.open(
        bundle.path("affine/fp32.onnx"), inputs=model.inputs, outputs=model.outputs,
        profile=model.profile, intra_op_threads=1, trace_to=tmp_path / "trace",
    )  # fmt: skip
    for _ in range(5):
        session.run({"x": np.ones((2, 4), np.float32)})
    path = session.end_trace()
    session.close()
    layers = layers_from_file(path, skip_runs=2)
    assert [(layer.kind, layer.precision) for layer in layers] == [
        ("Mul", "fp32"), ("Add", "fp32"), ("ReduceSum", "fp32"),
    ]  # fmt: skip
    # The same sums, straight from the file: of the last three of five runs.
    events = json.loads(path.read_text())
    for layer in layers:
        times = [e["dur"] for e in events if e["name"] == f"{layer.name}_kernel_time"]
        assert len(times) == 5
        assert layer.mean_ms == pytest.approx(sum(times[2:]) / 3 / 1e3)


def test_integer_and_half_kernels_are_told_apart(tmp_path):
    """MatMulInteger computes in int8, the Cast to FP16 and what follows in other types."""
    graph = model_from_nodes(
        [
            helper.make_node("MatMulInteger", ["a", "b"], ["c"], name="product"),
            helper.make_node("Cast", ["c"], ["f"], name="cast", to=TensorProto.FLOAT),
            helper.make_node("Exp", ["f"], ["y"], name="exp"),
        ],
        [helper.make_tensor_value_info("a", TensorProto.UINT8, [2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2])],
        {"b": np.ones((2, 2), np.uint8)},
    )
    session = OrtSession.open(
        save(graph, tmp_path / "m.onnx"),
        inputs=(TensorSpec(name="a", datatype="UINT8", shape=(2, 2)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(2, 2)),),
        profile=Profile(ranges={}), intra_op_threads=1, trace_to=tmp_path / "trace",
    )  # fmt: skip
    session.run({"a": np.ones((2, 2), np.uint8)})
    layers = layers_from_file(session.end_trace(), skip_runs=0)
    session.close()
    assert {layer.kind: layer.precision for layer in layers} == {
        "MatMulInteger": "int8",
        "Cast": "int32",
        "Exp": "fp32",
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"{}", "cannot be read"),
        (b'[{"name": 1}]', "cannot be read"),
        (b"[]", "no run that counts"),
        (b'[{"name": "model_run", "ts": 1}]', "no run that counts"),
    ],
)
def test_what_is_no_trace_is_an_error(content, message):
    with pytest.raises(InferenceError, match=message):
        layers_from_trace(content, skip_runs=1)


def test_the_layers_of_tensorrt_take_kind_and_precision_from_the_inspector():
    details = [
        {"Name": "conv", "LayerType": "CaskConvolution",
         "Inputs": [{"Format/Datatype": "Thirty-two wide channel vectorized row major Int8"}]},
        {"Name": "softmax", "LayerType": "SoftMax", "Inputs": [{"Format/Datatype": "Half"}]},
        {"Name": "out", "LayerType": "Reformat", "Inputs": [{"Format/Datatype": "Row major FP32"}]},
        {"Name": "scale", "LayerType": "Constant", "Inputs": []},
    ]  # fmt: skip
    times = {"conv": 10.0, "softmax": 5.0, "scale": 0.0, "out": 1.0, "unknown": 4.0}
    layers = layers_from_times(times, details, runs=10)
    assert [(x.name, x.kind, x.precision, x.mean_ms) for x in layers] == [
        ("conv", "CaskConvolution", "int8", 1.0),
        ("softmax", "SoftMax", "fp16", 0.5),
        ("out", "Reformat", "fp32", 0.1),
        ("unknown", "?", "?", 0.4),
    ]


def test_a_model_is_profiled_with_golden_rows_at_its_usual_batch(tmp_path):
    config = make_config(tmp_path)
    bundle = verified_bundle(config)
    times = profile_model(
        bundle, model_in(bundle, None), config, rows=None, runs=3, say=lambda line: None
    )
    assert (times.where, times.rows, times.runs) == ("variant int8 (int8)", 1, 3)
    assert times.run_ms > 0
    assert [layer.kind for layer in times.layers] == ["Mul", "Add", "ReduceSum"]
    assert all(layer.mean_ms > 0 for layer in times.layers)


def test_the_command_prints_tables_of_80_columns_and_json(tmp_path):
    config = make_config(tmp_path)
    flags = ["--bundle", config.bundle, "--trusted-keys", config.trusted_keys, "--runs", "5",
             "--cache", tmp_path / "cache", "--rows", "4"]  # fmt: skip
    done = run("profile", *flags)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= MAX_COLUMNS
    for word in ("variant int8 (int8), 4 rows", "ReduceSum", "share", "advice"):
        assert word in done.stdout
    report = json.loads(run("profile", *flags, "--variant", "fp32", "--json").stdout)
    assert report["profile"]["where"] == "variant fp32 (fp32)"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--rows", "9"], 2, "takes 8 rows at most, not 9"),
        (["--model", "b"], 1, "no model 'b'; it has affine"),
        (["--variant", "b"], 2, "variant 'b' is not in model 'affine'"),
        (["--runs", "0"], 2, "--runs"),
    ],
)
def test_what_cannot_be_profiled_is_one_line_and_its_exit_code(
    tmp_path, arguments, status, message
):
    config = make_config(tmp_path)
    done = run("profile", "--bundle", config.bundle, "--trusted-keys", config.trusted_keys,
               "--cache", tmp_path / "cache", *arguments)  # fmt: skip
    (line,) = done.stderr.splitlines()
    assert (done.returncode, line[:7]) == (status, "error: ")
    assert message in line
