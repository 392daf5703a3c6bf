"""The builder on TensorRT-RTX, which parses and builds without a GPU."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edge.engine_builder import EngineRequest, engine_from_onnx, is_typed
from edge.errors import BuildError
from edge.spec import Profile, ShapeRange
from edge.tensorrt_library import TensorRT, load_tensorrt
from tests.models import AFFINE_PROFILE, affine_model, save

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="TensorRT-RTX is built for x86-64 only"
)


@pytest.fixture(scope="module")
def library() -> TensorRT:
    return load_tensorrt("trt-rtx")


@pytest.fixture
def affine_onnx(tmp_path: Path) -> Path:
    return save(affine_model(), tmp_path / "affine.onnx")


def request(onnx_file: Path, **changes: object) -> EngineRequest:
    values: dict[str, object] = {
        "onnx": onnx_file,
        "precision": "fp32",
        "profiles": (AFFINE_PROFILE,),
        "compute_capabilities": ("SM89",),
    }
    return EngineRequest(**{**values, **changes})  # type: ignore[arg-type]


def test_an_engine_is_built_for_a_gpu_that_is_not_here(
    library: TensorRT, affine_onnx: Path
) -> None:
    built = engine_from_onnx(request(affine_onnx), library)
    assert len(built.plan) > 1000
    assert built.seconds > 0
    assert is_typed(library)


def test_progress_tells_phases_and_never_passes_its_total(
    library: TensorRT, affine_onnx: Path
) -> None:
    seen: list[tuple[str, int, int]] = []

    def progress(phase: str, done: int, total: int) -> bool:
        seen.append((phase, done, total))
        return True

    engine_from_onnx(request(affine_onnx), library, progress=progress)
    assert len({phase for phase, _, _ in seen}) > 1
    assert all(0 < done <= total for _, done, total in seen)


def test_a_build_can_be_cancelled(library: TensorRT, affine_onnx: Path) -> None:
    with pytest.raises(BuildError, match="was cancelled"):
        engine_from_onnx(request(affine_onnx), library, progress=lambda *_: False)


def test_what_the_parser_refuses_is_named(library: TensorRT, tmp_path: Path) -> None:
    model = affine_model()
    model.graph.node[0].op_type = "NoSuchOperator"
    broken = save(model, tmp_path / "broken.onnx")
    with pytest.raises(BuildError, match=r"cannot read .*broken\.onnx.*NoSuchOperator"):
        engine_from_onnx(request(broken), library)
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"not a model")
    with pytest.raises(BuildError, match=r"cannot read .*garbage\.onnx"):
        engine_from_onnx(request(garbage), library)


def test_a_dimension_without_a_profile_is_a_clear_error(
    library: TensorRT, affine_onnx: Path
) -> None:
    with pytest.raises(BuildError, match=r"input 'x' has the shape \[-1, 4\] and no profile"):
        engine_from_onnx(request(affine_onnx, profiles=(Profile(ranges={}),)), library)


def test_a_profile_that_the_graph_contradicts_is_a_clear_error(
    library: TensorRT, affine_onnx: Path
) -> None:
    wide = ShapeRange(min=(1, 5), opt=(1, 5), max=(8, 5))
    with pytest.raises(BuildError, match=r"cannot build .*affine\.onnx"):
        engine_from_onnx(request(affine_onnx, profiles=(Profile(ranges={"x": wide}),)), library)


def test_half_precision_is_what_the_graph_says(library: TensorRT, tmp_path: Path) -> None:
    model = affine_model()
    for tensor in (*model.graph.input, *model.graph.output):
        tensor.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    for tensor in model.graph.initializer:
        if tensor.name != "axes":
            half = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    assert engine_from_onnx(request(save(model, tmp_path / "half.onnx")), library).plan


def test_a_calibration_cache_is_refused_where_only_qdq_counts(
    library: TensorRT, affine_onnx: Path
) -> None:
    with pytest.raises(BuildError, match="takes INT8 from Q/DQ alone"):
        engine_from_onnx(request(affine_onnx, calibration_cache=b"TRT-8600-x\n"), library)


def test_a_dla_core_is_refused_where_there_can_be_none(
    library: TensorRT, affine_onnx: Path
) -> None:
    with pytest.raises(BuildError, match="DLA core"):
        engine_from_onnx(request(affine_onnx, dla_core=0), library)
