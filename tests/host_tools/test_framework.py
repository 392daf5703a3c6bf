"""The original torch model beside its bundle, and its operators under torch's profiler."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from edge.bench.framework import FrameworkModel
from edge.bench.table import MAX_COLUMNS
from edge.errors import UsageError
from edge.spec import TensorSpec
from host_tools.errors import ExportError
from host_tools.framework import open_torch
from host_tools.torch_profile import layers_from_events, profile_source
from tests.host_tools import factories

CNN = "tests.host_tools.factories:cnn"
TWO = "tests.host_tools.factories:two_outputs"


def specs(*names: str) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name=name, datatype="FP32", shape=("n", 2)) for name in names)


def test_the_original_computes_what_torch_computes():
    module, _ = factories.cnn()
    pixels = np.random.default_rng(0).standard_normal((3, 3, 16, 16), np.float32)
    with torch.no_grad():
        expected = module.eval()(torch.tensor(pixels))
    pixels.flags.writeable = False  # as a tensor that is read in place is
    model: FrameworkModel = open_torch(CNN, specs("pixels"), specs("scores"), 1)
    np.testing.assert_allclose(model.run({"pixels": pixels})["scores"], expected, rtol=1e-5)


def test_names_are_matched_by_name_where_they_agree_and_by_place_where_not():
    left, right = np.ones((2, 4), np.float32), np.full((2, 4), 2, np.float32)
    named = open_torch(TWO, specs("right", "left"), specs("length", "total"), None)
    answer = named.run({"left": left, "right": right})
    np.testing.assert_array_equal(answer["total"], left + right)
    np.testing.assert_allclose(answer["length"], [2.0, 2.0])
    placed = open_torch(TWO, specs("a", "b"), specs("sum", "norm"), None)
    np.testing.assert_array_equal(placed.run({"a": left, "b": right})["sum"], left + right)


def test_another_model_than_that_of_the_bundle_is_refused():
    with pytest.raises(ExportError, match="the source that it was exported from"):
        open_torch(TWO, specs("a"), specs("b"), None)
    with pytest.raises(UsageError, match="no folder, no file and no factory"):
        open_torch("nothing", specs("a"), specs("b"), None)


def test_an_onnx_file_is_no_original(tmp_path):
    file = tmp_path / "m.onnx"
    file.touch()
    with pytest.raises(ExportError, match="not the original model"):
        open_torch(str(file), specs("a"), specs("b"), None)


def test_only_operators_that_took_time_of_their_own_are_layers():
    def event(key: str, us: float) -> SimpleNamespace:
        return SimpleNamespace(
            key=key, self_cpu_time_total=us, input_shapes=[[], [8, 3], [3, 4], [1]]
        )

    events = [event("aten::mm", 500.0), event("aten::linear", 0.0), event("cudaLaunch", 90.0)]
    (layer,) = layers_from_events(events, runs=10, on_gpu=False, precision="fp32")
    assert (layer.name, layer.kind, layer.mean_ms) == ("mm 8x3 3x4", "mm", 0.05)


def test_the_operators_of_a_module_are_those_of_its_layers():
    times = profile_source(CNN, rows=2, runs=3, threads=1)
    kinds = {layer.kind for layer in times.layers}
    assert any("conv" in kind for kind in kinds)
    assert {"addmm"} <= kinds
    assert times.run_ms > 0
    assert {layer.precision for layer in times.layers} == {"fp32"}


def edge_kit(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from host_tools.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip


def test_the_command_prints_tables_of_80_columns_and_json():
    done = edge_kit("profile", CNN, "--runs", "2")
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= MAX_COLUMNS
    assert "torch.profiler" in done.stdout
    report = json.loads(edge_kit("profile", CNN, "--runs", "2", "--json").stdout)
    assert report["profile"]["rows"] == 1


def test_a_source_that_is_none_is_one_line_and_exit_code_2():
    done = edge_kit("profile", "nothing")
    assert (done.returncode, done.stderr[:7]) == (2, "error: ")
