from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxslim
import pytest
import torch

from calibration.errors import GraphError
from calibration.model_file import (
    load_model,
    opset_of,
    profile_from_model,
    provenance_from_model,
    save_model,
)
from edge.errors import UsageError
from edge.spec import ShapeRange
from host_tools.errors import ExportError, ParityError
from host_tools.export import ExportReport, ExportRequest, export_model
from tests.host_tools import factories
from tests.host_tools.commands import run_file

CNN_SHAPES = ("pixels=1x3x8x8:4x3x8x8:9x3x8x8",)
# fp32, a few hundred additions per value: rounding stays far below this.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}

Export = Callable[..., ExportReport]


@pytest.fixture
def export(tmp_path: Path) -> Export:
    """Export a factory of ours to tmp_path/model.onnx; .said holds the lines."""

    def run(factory: str, **options: Any) -> ExportReport:
        source = f"tests.host_tools.factories:{factory}"
        request = ExportRequest(source=source, out=tmp_path / "model.onnx", **options)
        return export_model(request, say=said.append)

    said: list[str] = []
    run.said = said  # type: ignore[attr-defined]
    return run


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(str(path)).graph.node}


@pytest.mark.parametrize(
    ("options", "opset", "exporter"),
    [
        ({}, 17, "torch-legacy"),
        ({"target": "jetpack5"}, 16, "torch-legacy"),
        ({"target": "jetpack6"}, 17, "torch-legacy"),
        ({"target": "jetpack7"}, 18, "torch-dynamo"),
        ({"target": "cpu", "opset": 20}, 20, "torch-dynamo"),
        ({"opset": 13}, 13, "torch-legacy"),
    ],
)
def test_the_target_decides_opset_and_exporter_and_the_numbers_hold(
    export: Export, options: dict[str, Any], opset: int, exporter: str
) -> None:
    report = export("cnn", shapes=CNN_SHAPES, **options)
    assert (report.opset, report.exporter) == (opset, exporter)
    assert opset_of(load_model(report.path)) == opset
    module, _ = factories.cnn()
    for rows in (1, 3, 9):
        pixels = torch.randn(rows, 3, 8, 8)
        with torch.no_grad():
            expected = module.eval()(pixels).numpy()
        np.testing.assert_allclose(
            run_file(report.path, pixels=pixels.numpy())[0], expected, **CLOSE
        )


def test_the_report_says_what_was_written_and_tested(export: Export) -> None:
    report = export("cnn", shapes=CNN_SHAPES)
    assert report.size_bytes == report.path.stat().st_size
    assert [(s.name, s.datatype, s.shape) for s in report.inputs] == [
        ("pixels", "FP32", ("batch", 3, 8, 8))
    ]
    assert [(s.name, s.shape) for s in report.outputs] == [("output", ("batch", 5))]
    assert {check.shapes for check in report.checks} == {
        f"pixels={rows}x3x8x8" for rows in (1, 4, 9)
    }
    assert report.worst is not None
    assert report.worst == max(check.relative_error for check in report.checks)
    assert report.worst < 1e-4
    assert f"{report.size_bytes:,} bytes, opset 17" in report.summary()


def test_profile_and_provenance_travel_in_the_file(export: Export) -> None:
    report = export("cnn", shapes=CNN_SHAPES)
    model = load_model(report.path)
    assert profile_from_model(model).ranges["pixels"] == ShapeRange(
        min=(1, 3, 8, 8), opt=(4, 3, 8, 8), max=(9, 3, 8, 8)
    )
    provenance = provenance_from_model(model)
    assert provenance.source == "tests.host_tools.factories:cnn"
    assert provenance.exporter == "torch-legacy"
    assert provenance.tools["torch"] == torch.__version__


def test_without_a_shape_the_example_s_is_fixed(export: Export) -> None:
    report = export("cnn")
    assert report.inputs[0].shape == (2, 3, 8, 8)
    assert report.outputs[0].shape == (2, 5)


def test_image_sizes_may_vary_too(export: Export) -> None:
    report = export("cnn", shapes=("pixels=1x3x8x8:2x3x12x12:4x3x16x20",))
    assert report.inputs[0].shape == ("batch", 3, "height", "width")
    assert len(report.checks) == 16


def test_layer_normalization_is_decomposed_for_jetpack5(export: Export) -> None:
    shapes = ("x=1x6:2x6:4x6",)
    assert "LayerNormalization" not in operators(
        export("normalized", shapes=shapes, target="jetpack5").path
    )
    assert "LayerNormalization" in operators(export("normalized", shapes=shapes).path)


@pytest.mark.parametrize("opset", [17, 18])
def test_two_inputs_and_outputs_keep_their_names(export: Export, opset: int) -> None:
    shapes = ("left=1x3:2x3:4x3", "right=1x3:2x3:4x3")
    report = export("two_outputs", shapes=shapes, opset=opset)
    assert [spec.name for spec in report.inputs] == ["right", "left"]
    assert [(s.name, s.shape) for s in report.outputs] == [
        ("total", ("batch", 3)),
        ("length", ("batch",)),
    ]
    left, right = np.full((3, 3), 2, np.float32), np.ones((3, 3), np.float32)
    total, length = run_file(report.path, left=left, right=right)
    np.testing.assert_array_equal(total, left + right)
    np.testing.assert_allclose(length, np.sqrt(np.full(3, 12.0)), rtol=1e-6)


@pytest.mark.parametrize("opset", [17, 18])
def test_an_output_may_be_called_like_an_inner_value(export: Export, opset: int) -> None:
    report = export("lookup", shapes=("ids=1x1:2x3:4x8",), opset=opset)
    assert [(s.name, s.shape) for s in report.outputs] == [("embedding", ("batch", "sequence", 4))]


@pytest.mark.parametrize(
    ("factory", "shape", "wrong"),
    [
        ("baked_batch", "x=1x3:2x3:8x3", r"output 'output' at x=(1|8)x3: relative error"),
        ("baked_reshape", "x=1x3:2x3:8x3", "fails at x=1x3: .*Reshape"),
        ("long_branch", "x=2x4:2x8:2x64", r"output 'output' at x=2x64: relative error"),
        ("not_a_number", "x=1x3:2x3:4x3", r"output 'output' at x=1x3: relative error inf"),
    ],
)
def test_a_model_that_is_wrong_at_a_corner_is_refused_and_not_written(
    export: Export, tmp_path: Path, factory: str, shape: str, wrong: str
) -> None:
    with pytest.raises(ExportError, match=wrong):
        export(factory, shapes=(shape,))
    assert list(tmp_path.iterdir()) == []


def test_a_refused_export_leaves_the_older_file(export: Export, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"older")
    with pytest.raises(ParityError):
        export("baked_batch", shapes=("x=1x3:2x3:8x3",))
    assert (tmp_path / "model.onnx").read_bytes() == b"older"


def test_the_tolerance_is_the_caller_s(export: Export, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="allowed 1e-12"):
        export("cnn", shapes=CNN_SHAPES, tolerance=1e-12)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("opset", "other"), [(17, "--opset 18"), (18, "--opset 17")])
def test_a_failing_exporter_gives_its_reason_and_the_other_one(
    export: Export, tmp_path: Path, opset: int, other: str
) -> None:
    with pytest.raises(ExportError, match=r"cannot export.*eig.*" + other) as caught:
        export("unexportable", opset=opset)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_shape_the_model_does_not_take_is_named(export: Export) -> None:
    with pytest.raises(ExportError, match="fails in torch at pixels=1x4x8x8"):
        export("cnn", shapes=("pixels=1x4x8x8:2x4x8x8:4x4x8x8",))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"opset": 21}, r"--opset 21: target any takes 13\.\.20"),
        ({"opset": 12}, "--opset 12"),
        ({"opset": 17, "target": "jetpack5"}, r"jetpack5 takes 13\.\.16"),
        ({"target": "jetpack9"}, "jetpack9 is not one of any, jetpack5"),
        ({"tolerance": 0.0}, "--tolerance 0"),
        ({"tolerance": float("nan")}, "--tolerance nan"),
        ({"shapes": ("y=1x2",)}, "no such input; it takes pixels"),
        ({"shapes": ("pixels",)}, "--shape pixels"),
        ({"task": "feature-extraction"}, "--task"),
    ],
)
def test_wrong_options_are_usage_errors(
    export: Export, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UsageError, match=problem):
        export("cnn", **options)


def test_the_output_s_folder_must_exist(tmp_path: Path) -> None:
    request = ExportRequest(
        source="tests.host_tools.factories:cnn", out=tmp_path / "absent" / "m.onnx"
    )
    with pytest.raises(UsageError, match=r"no folder .*absent"):
        export_model(request, say=print)


@pytest.mark.parametrize("failure", [RecursionError("too deep"), KeyError("lost")])
def test_when_onnxslim_fails_the_traced_graph_is_kept(
    export: Export, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def fail(model: onnx.ModelProto) -> onnx.ModelProto:
        raise failure

    monkeypatch.setattr(onnxslim, "slim", fail)
    report = export("cnn", shapes=CNN_SHAPES)
    assert not report.slimmed
    assert any("onnxslim failed" in line for line in export.said)  # type: ignore[attr-defined]


def test_when_onnxslim_changes_numbers_the_traced_graph_is_kept(
    export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(model: onnx.ModelProto) -> onnx.ModelProto:
        for tensor in model.graph.initializer:
            array = onnx.numpy_helper.to_array(tensor)
            if array.dtype == np.float32:
                tensor.CopyFrom(onnx.numpy_helper.from_array(array * 1.5, tensor.name))
        return model

    monkeypatch.setattr(onnxslim, "slim", change)
    report = export("cnn", shapes=CNN_SHAPES)
    assert not report.slimmed
    assert any("onnxslim changed" in line for line in export.said)  # type: ignore[attr-defined]
    module, example = factories.cnn()
    with torch.no_grad():
        expected = module.eval()(example).numpy()
    np.testing.assert_allclose(run_file(report.path, pixels=example.numpy())[0], expected, **CLOSE)


@pytest.mark.parametrize("names", [("sum", "sum"), ("left", "norm")])
def test_two_tensors_of_one_name_are_refused(
    export: Export, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    module, example = factories.two_outputs()
    monkeypatch.setattr(factories, "two_outputs", lambda: (module, example, names))
    with pytest.raises(ExportError, match=f"{names[0]} would name two tensors"):
        export("two_outputs")


def test_a_file_that_we_exported_needs_no_flag(export: Export, tmp_path: Path) -> None:
    first = export("cnn", shapes=CNN_SHAPES)
    request = ExportRequest(source=str(first.path), out=tmp_path / "again.onnx")
    again = export_model(request, say=lambda line: None)
    assert (again.profile, again.inputs, again.outputs) == (
        first.profile,
        first.inputs,
        first.outputs,
    )
    assert again.exporter == "torch-legacy"


def test_a_profile_that_contradicts_the_graph_is_refused(export: Export, tmp_path: Path) -> None:
    model = load_model(export("cnn", shapes=CNN_SHAPES).path)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 4
    save_model(model, tmp_path / "changed.onnx")
    with pytest.raises(GraphError, match="the graph was changed after its export"):
        profile_from_model(load_model(tmp_path / "changed.onnx"))
