import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import set_external_data

from edge.errors import BackendUnavailableError, InferenceError, InputError, ModelError
from edge.onnxruntime_library import preload_cuda
from edge.ort_session import OrtSession
from edge.session import Session
from edge.spec import NUMPY_FROM_DATATYPE, Datatype, Profile, ShapeRange, TensorSpec
from edge.tensor_bytes import object_array
from tests.fakes import FakeSession
from tests.models import (
    AFFINE_INPUTS,
    AFFINE_OUTPUTS,
    AFFINE_PROFILE,
    affine,
    affine_model,
    gather_model,
    identity_model,
    save,
)
from tests.session_contract import SessionContract


def open_affine(graph: Path) -> OrtSession:
    return OrtSession.open(
        graph,
        inputs=AFFINE_INPUTS,
        outputs=AFFINE_OUTPUTS,
        profile=AFFINE_PROFILE,
        intra_op_threads=1,
    )


def fixed(name: str, datatype: Datatype, shape: tuple[int, ...]) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


class TestOrtSession(SessionContract):
    @pytest.fixture
    def open_session(self, tmp_path: Path) -> Callable[[], Session]:
        graph = save(affine_model(), tmp_path / "affine.onnx")
        return lambda: open_affine(graph)


class TestFakeSession(SessionContract):
    @pytest.fixture
    def open_session(self) -> Callable[[], Session]:
        return FakeSession


@pytest.mark.parametrize("datatype", list(NUMPY_FROM_DATATYPE))
def test_every_datatype_passes_through_unchanged(datatype: Datatype, tmp_path: Path) -> None:
    spec, out = fixed("x", datatype, (2, 3)), fixed("y", datatype, (2, 3))
    session = OrtSession.open(
        save(identity_model(datatype), tmp_path / "identity.onnx"),
        inputs=(spec,),
        outputs=(out,),
        profile=Profile(ranges={"x": ShapeRange(min=(2, 3), opt=(2, 3), max=(2, 3))}),
        intra_op_threads=None,
    )
    x = np.array([[0, 1, 1], [1, 0, 1]]).astype(spec.dtype)
    if datatype == "BYTES":
        x = object_array([b"", b"a\0", "grün".encode(), b"0", b"1", b"long " * 100], (2, 3))
    y = session.run({"x": x})["y"]
    np.testing.assert_array_equal(y, x)
    assert y.dtype == spec.dtype
    assert not np.shares_memory(x, y)
    session.close()


def test_strings_that_are_no_utf_8_are_refused_and_the_session_lives_on(tmp_path: Path) -> None:
    session = OrtSession.open(
        save(identity_model("BYTES"), tmp_path / "identity.onnx"),
        inputs=(fixed("x", "BYTES", (2, 3)),),
        outputs=(fixed("y", "BYTES", (2, 3)),),
        profile=Profile(ranges={}),
        intra_op_threads=1,
    )
    with pytest.raises(InputError, match="'x': an element is no UTF-8"):
        session.run({"x": object_array([b"\xff"] * 6, (2, 3))})
    good = object_array([b"good"] * 6, (2, 3))
    np.testing.assert_array_equal(session.run({"x": good})["y"], good)
    session.close()


def test_weights_beside_a_blob_named_by_digest_are_found(tmp_path: Path) -> None:
    model = affine_model()
    for tensor in model.graph.initializer:
        if tensor.name != "axes":  # shape inference must read this one
            set_external_data(tensor, location="a" * 64)
    onnx.save(model, str(tmp_path / ("b" * 64)))
    session = open_affine(tmp_path / ("b" * 64))
    x = np.ones((1, 4), np.float32)
    np.testing.assert_array_equal(session.run({"x": x})["y"], affine(x)["y"])
    session.close()


@pytest.mark.parametrize("content", [b"", b"not a model", affine_model().SerializeToString()[:-40]])
def test_a_file_that_is_no_model_is_a_model_error_naming_it(content: bytes, tmp_path: Path) -> None:
    graph = tmp_path / "broken.onnx"
    graph.write_bytes(content)
    with pytest.raises(ModelError, match=r"broken\.onnx"):
        open_affine(graph)


def test_a_missing_file_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="absent"):
        open_affine(tmp_path / "absent.onnx")


def test_a_graph_that_differs_from_the_manifest_is_refused(tmp_path: Path) -> None:
    graph = save(identity_model("FP32"), tmp_path / "identity.onnx")
    with pytest.raises(ModelError, match="the manifest says"):
        open_affine(graph)


def test_a_failure_inside_the_backend_is_an_inference_error(tmp_path: Path) -> None:
    session = OrtSession.open(
        save(gather_model(), tmp_path / "gather.onnx"),
        inputs=(fixed("i", "INT64", (1,)),),
        outputs=(fixed("y", "FP32", (1,)),),
        profile=Profile(ranges={"i": ShapeRange(min=(1,), opt=(1,), max=(1,))}),
        intra_op_threads=1,
    )
    with pytest.raises(InferenceError, match="failed to run"):
        session.run({"i": np.array([99], np.int64)})
    assert session.run({"i": np.array([3], np.int64)})["y"] == 3
    session.close()


def test_a_missing_onnxruntime_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendUnavailableError, match=r"edge-kit\[ort\]"):
        open_affine(tmp_path / "any.onnx")


def test_cuda_libraries_of_pip_are_loaded_without_a_word(
    capfd: pytest.CaptureFixture[str],
) -> None:
    class NewRuntime:
        calls = 0

        @classmethod
        def preload_dlls(cls) -> None:
            cls.calls += 1
            print("Failed to load /nowhere/libcudnn.so.9")  # noqa: T201

    preload_cuda(NewRuntime)
    preload_cuda(object())  # before 1.21 there is nothing to call
    assert NewRuntime.calls == 1
    assert capfd.readouterr() == ("", "")
