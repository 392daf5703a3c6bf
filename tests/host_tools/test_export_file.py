"""An ONNX file that somebody else wrote, passed on with a profile."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from calibration.errors import GraphError
from calibration.model_file import load_model, profile_from_model, save_model
from edge.errors import UsageError
from host_tools.errors import ExportError
from host_tools.export import ExportReport, ExportRequest, export_model
from tests.host_tools.commands import run_file


def affine(dims: list[int | str | None], *, opset: int = 17) -> onnx.ModelProto:
    weight = onnx.numpy_helper.from_array(np.eye(3, dtype=np.float32) * 2, "w")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "affine",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, dims)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None, 3])],
        [weight],
    )
    opsets = [onnx.helper.make_opsetid("", opset)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)


def pass_on(tmp_path: Path, model: onnx.ModelProto, **options: Any) -> ExportReport:
    source = tmp_path / "source.onnx"
    save_model(model, source)
    request = ExportRequest(source=str(source), out=tmp_path / "model.onnx", **options)
    return export_model(request, say=lambda line: None)


def test_a_file_gets_its_profile_and_keeps_its_graph(tmp_path: Path) -> None:
    report = pass_on(tmp_path, affine([None, 3]), shapes=("x=1x3:2x3:4x3",))
    assert (report.exporter, report.opset, report.slimmed) == ("unknown", 17, False)
    assert (report.checks, report.worst) == ((), None)
    assert report.worst is None
    assert report.inputs[0].shape == report.outputs[0].shape == ("batch", 3)
    assert profile_from_model(load_model(report.path)).ranges["x"].max == (4, 3)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(run_file(report.path, x=x)[0], x * 2)


def test_a_named_dimension_keeps_its_name(tmp_path: Path) -> None:
    report = pass_on(tmp_path, affine(["rows", 3]), shapes=("x=1x3:2x3:4x3",))
    assert report.inputs[0].shape == report.outputs[0].shape == ("rows", 3)


def test_a_varying_dimension_may_be_fixed(tmp_path: Path) -> None:
    report = pass_on(tmp_path, affine(["rows", 3]), shapes=("x=5x3",))
    assert report.inputs[0].shape == report.outputs[0].shape == (5, 3)


def test_external_weights_come_inside(tmp_path: Path) -> None:
    onnx.save(
        affine([2, 3]),
        str(tmp_path / "source.onnx"),
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    request = ExportRequest(source=str(tmp_path / "source.onnx"), out=tmp_path / "model.onnx")
    report = export_model(request, say=lambda line: None)
    (tmp_path / "weights.bin").unlink()
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(run_file(report.path, x=x)[0], x * 2)


@pytest.mark.parametrize(
    ("dims", "options", "kind", "problem"),
    [
        ([None, 3], {}, GraphError, "carries no profile"),
        ([2, 3], {"shapes": ("x=1x3:2x3:4x3",)}, UsageError, "axis 0 is fixed to 2"),
        ([None, 3], {"shapes": ("z=1x3",)}, GraphError, "carries no profile"),
        ([2, 3], {"shapes": ("z=1x3",)}, UsageError, "no such input; it takes x"),
        ([2, 3], {"opset": 17}, UsageError, "--opset cannot change"),
        ([2, 3], {"target": "jetpack5"}, ExportError, "opset 17, target jetpack5 takes 13 to 16"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_and_not_written(
    tmp_path: Path, dims: list[Any], options: dict[str, Any], kind: type[Exception], problem: str
) -> None:
    with pytest.raises(kind, match=problem):
        pass_on(tmp_path, affine(dims), **options)
    assert not (tmp_path / "model.onnx").exists()


def test_a_file_older_than_quantization_per_channel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"opset 11, .* takes 13 to 20.*version_converter"):
        pass_on(tmp_path, affine([2, 3], opset=11))


def test_a_dimension_of_minus_one_varies_and_one_of_zero_is_refused(tmp_path: Path) -> None:
    report = pass_on(tmp_path, affine([-1, 3]), shapes=("x=1x3:2x3:4x3",))
    assert report.inputs[0].shape == ("batch", 3)
    with pytest.raises(GraphError, match="'x' has the size 0 on axis 0"):
        pass_on(tmp_path, affine([0, 3]))


def test_a_file_that_does_not_run_at_a_corner_is_refused(tmp_path: Path) -> None:
    model = affine([None, None])
    with pytest.raises(ExportError, match="fails at x=1x1"):
        pass_on(tmp_path, model, shapes=("x=1x1:2x3:2x4",))
    assert not (tmp_path / "model.onnx").exists()


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "source.onnx").write_bytes(b"not a model")
    request = ExportRequest(source=str(tmp_path / "source.onnx"), out=tmp_path / "model.onnx")
    with pytest.raises(GraphError, match=r"source\.onnx is not a valid ONNX model"):
        export_model(request, say=print)


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    request = ExportRequest(source=str(tmp_path / "no.onnx"), out=tmp_path / "model.onnx")
    with pytest.raises(UsageError, match=r"no model at .*no\.onnx"):
        export_model(request, say=print)


def test_passing_a_file_on_never_imports_torch(tmp_path: Path) -> None:
    save_model(affine([2, 3]), tmp_path / "source.onnx")
    code = (
        "import sys; from pathlib import Path\n"
        "from host_tools.export import ExportRequest, export_model\n"
        "export_model(ExportRequest(source=sys.argv[1], out=Path(sys.argv[2])), say=print)\n"
        "assert not {'torch', 'transformers', 'onnxslim'} & set(sys.modules)\n"
    )
    paths = [str(tmp_path / "source.onnx"), str(tmp_path / "model.onnx")]
    subprocess.run([sys.executable, "-c", code, *paths], check=True, timeout=60)
