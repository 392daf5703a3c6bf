"""Memory by measurement, held against models whose need is known from their shapes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edge.errors import ModelError
from edge.spec import Profile, ShapeRange, TensorSpec
from host_tools.blobs import BlobStore
from host_tools.memory_probe import (
    ProbeRequest,
    UnmeasuredError,
    Values,
    peak_memory_bytes,
    values_from_feeds,
)
from tests.models import gather_model, model_from_nodes, save

MIB = 1 << 20
WIDTH = 4096
WEIGHT_BYTES = 4 * WIDTH * WIDTH
# A graph of two nodes and ONNX Runtime's own state; above this something else was counted.
OVERHEAD_BYTES = 32 * MIB


def request_for(
    graph: Path, model: onnx.ModelProto, profile: Profile, feed: np.ndarray
) -> ProbeRequest:
    from calibration.model_file import specs_from_model

    inputs, outputs = specs_from_model(model)
    return ProbeRequest(
        graph=str(graph),
        inputs=inputs,
        outputs=outputs,
        profile=profile,
        threads=1,
        values=values_from_feeds({inputs[0].name: feed}),
    )


def rows(low: int, high: int, width: int) -> Profile:
    return Profile(ranges={"x": ShapeRange(min=(low, width), opt=(low, width), max=(high, width))})


def expanding_request(folder: Path, *, max_rows: int) -> ProbeRequest:
    """Return y[batch] = sum over a (batch, 512, 1024) product: 2 MiB of activations a row."""
    model = model_from_nodes(
        [
            helper.make_node("Unsqueeze", ["x", "axes"], ["column"]),
            helper.make_node("Mul", ["column", "row"], ["product"]),
            helper.make_node("ReduceMax", ["product"], ["y"], axes=[1, 2], keepdims=0),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 512])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch"])],
        {"axes": np.array([2], np.int64), "row": np.ones((1, 1, 1024), np.float32)},
    )
    path = save(model, folder / "expand.onnx")
    return request_for(path, model, rows(1, max_rows, 512), np.ones((1, 512), np.float32))


def test_weights_count_once_mapped_and_at_most_once_more_rearranged(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).random((WIDTH, WIDTH), dtype=np.float32)
    model = model_from_nodes(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", WIDTH])],
        {"w": weights},
    )
    store = BlobStore(tmp_path)
    graph, _ = store.add_model("net.onnx", model)
    digest = next(a.sha256 for a in store.artifacts if a.path == graph)
    request = request_for(
        tmp_path / "blobs" / "sha256" / digest,
        model,
        rows(1, 2, WIDTH),
        np.ones((1, WIDTH), np.float32),
    )
    peak = peak_memory_bytes(request)
    assert WEIGHT_BYTES <= peak <= 2 * WEIGHT_BYTES + OVERHEAD_BYTES


def test_activations_of_the_largest_shape_show(tmp_path: Path) -> None:
    small, large = (
        peak_memory_bytes(expanding_request(tmp_path, max_rows=count)) for count in (1, 100)
    )
    assert small <= OVERHEAD_BYTES
    # One product of 100 rows; a second block may be planned once the shapes are known.
    assert 200 * MIB <= large - small <= 2 * 200 * MIB


def test_what_this_process_holds_does_not_count(tmp_path: Path) -> None:
    held = np.ones(400 * MIB, np.uint8)  # a child inherits ru_maxrss from here, but not VmHWM
    assert peak_memory_bytes(expanding_request(tmp_path, max_rows=1)) <= OVERHEAD_BYTES
    assert held.nbytes == 400 * MIB


def test_values_are_repeated_so_that_indices_stay_in_range(tmp_path: Path) -> None:
    values = Values(datatype="INT64", content=np.array([3, 1], np.int64).tobytes())
    np.testing.assert_array_equal(values.in_shape((2, 3)), [[3, 1, 3], [1, 3, 1]])
    model = gather_model()  # fails for an index that is not below 4
    path = save(model, tmp_path / "gather.onnx")
    fixed = Profile(ranges={"i": ShapeRange(min=(1,), opt=(1,), max=(1,))})
    request = request_for(path, model, fixed, np.array([3], np.int64))
    assert peak_memory_bytes(request) <= OVERHEAD_BYTES
    failing = replace(request, values=values_from_feeds({"i": np.array([9], np.int64)}))
    with pytest.raises(ModelError, match="does not keep what its profile promises: ONNX Runtime"):
        peak_memory_bytes(failing)


def test_a_graph_that_is_not_the_model_described_is_refused(tmp_path: Path) -> None:
    request = expanding_request(tmp_path, max_rows=1)
    other = (TensorSpec(name="z", datatype="FP32", shape=("batch",)),)
    with pytest.raises(ModelError, match="the manifest says"):
        peak_memory_bytes(replace(request, outputs=other))


def test_a_run_that_takes_too_long_is_not_a_fault_of_the_model(tmp_path: Path) -> None:
    with pytest.raises(UnmeasuredError, match=r"takes more than 0\.001 s"):
        peak_memory_bytes(expanding_request(tmp_path, max_rows=1), timeout_s=0.001)


def test_a_child_that_runs_out_of_memory_is_not_a_fault_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    monkeypatch.setattr("host_tools.memory_probe._CHILD", killed)
    with pytest.raises(UnmeasuredError, match=r"killed by SIGKILL; it needs more memory"):
        peak_memory_bytes(expanding_request(tmp_path, max_rows=1))
    monkeypatch.setattr("host_tools.memory_probe._CHILD", "raise OSError('no /proc here')")
    with pytest.raises(UnmeasuredError, match="ended with status 1: OSError: no /proc here"):
        peak_memory_bytes(expanding_request(tmp_path, max_rows=1))
