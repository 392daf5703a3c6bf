"""TensorRT on a real GPU: the contract of every Session, and what is TensorRT's own.

Run where a GPU and TensorRT are: `make test-gpu`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edge.bench.trt_layers import layers_of_runs
from edge.engine_builder import EngineRequest, engine_from_onnx
from edge.errors import InputError, ModelError
from edge.session import Session
from edge.spec import Profile, ShapeRange, StatePair, TensorSpec
from edge.tensorrt_library import TensorRT, load_tensorrt
from edge.trt_session import FEW_GRAPHS, GRAPH_AT_RUN, TrtSession
from tests.models import (
    AFFINE_INPUTS,
    AFFINE_OUTPUTS,
    AFFINE_PROFILE,
    affine,
    affine_model,
    gather_model,
    save,
)
from tests.session_contract import SessionContract

pytestmark = [pytest.mark.gpu, pytest.mark.trt]
BATCH_1 = Profile(ranges={"x": ShapeRange(min=(1, 4), opt=(1, 4), max=(1, 4))})


@pytest.fixture(scope="module")
def library() -> TensorRT:
    return load_tensorrt("trt")


@pytest.fixture(scope="module")
def plan(library: TensorRT, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = save(affine_model(), tmp_path_factory.mktemp("onnx") / "affine.onnx")
    request = EngineRequest(
        onnx=file,
        precision="fp32",
        profiles=(BATCH_1, AFFINE_PROFILE),
    )
    return engine_from_onnx(request, library).plan


def opened(library: TensorRT, plan: bytes, **options: bool) -> TrtSession:
    return TrtSession.open(
        plan,
        library=library,
        inputs=AFFINE_INPUTS,
        outputs=AFFINE_OUTPUTS,
        profile=AFFINE_PROFILE,
        **options,
    )


class TestContract(SessionContract):
    """The four promises, with CUDA graphs once a shape is frequent."""

    @pytest.fixture
    def open_session(self, library: TensorRT, plan: bytes) -> Callable[[], Session]:
        return lambda: opened(library, plan)


class TestContractWithoutGraphs(SessionContract):
    """The same without graphs."""

    @pytest.fixture
    def open_session(self, library: TensorRT, plan: bytes) -> Callable[[], Session]:
        return lambda: opened(library, plan, use_graphs=False)


@pytest.fixture
def session(library: TensorRT, plan: bytes) -> Iterator[TrtSession]:
    session = opened(library, plan)
    yield session
    session.close()


def test_answers_stay_right_when_shapes_become_graphs_and_take_turns(
    library: TensorRT, session: TrtSession
) -> None:
    rng = np.random.default_rng(0)
    for _ in range(3 * GRAPH_AT_RUN * session.depth):
        for rows in (1, 8, 3, 2, 5):  # an odd number, so that each shape meets each bank
            x = rng.normal(size=(rows, 4)).astype(np.float32)
            for name, expected in affine(x).items():
                np.testing.assert_allclose(
                    session.run({"x": x})[name], expected, rtol=1e-6, atol=1e-6
                )
    # Without profile sharing, only the profile of batch 1 alone keeps its shapes.
    assert session.graphs == (5 * session.depth if library.shares_profiles else 1)


def test_more_shapes_than_get_graphs_at_once_still_run(library: TensorRT, tmp_path: Path) -> None:
    wide = Profile(ranges={"x": ShapeRange(min=(1, 4), opt=(4, 4), max=(64, 4))})
    file = save(affine_model(), tmp_path / "affine.onnx")
    request = EngineRequest(
        onnx=file,
        precision="fp32",
        profiles=(wide,),
    )
    session = TrtSession.open(
        engine_from_onnx(request, library).plan,
        library=library, inputs=AFFINE_INPUTS, outputs=AFFINE_OUTPUTS, profile=wide,
    )  # fmt: skip
    for rows in (*range(1, 64), *range(1, 9)):
        for _ in range(GRAPH_AT_RUN * session.depth):
            x = np.full((rows, 4), rows, np.float32)
            np.testing.assert_array_equal(session.run({"x": x})["y"], 2 * x + 1)
    assert session.graphs == (FEW_GRAPHS if library.shares_profiles else 0)
    session.close()


@pytest.mark.parametrize("use_graphs", [True, False])
def test_two_runs_that_overlap_give_each_its_own_answer(
    library: TensorRT, plan: bytes, use_graphs: bool
) -> None:
    session = opened(library, plan, use_graphs=use_graphs)
    rng = np.random.default_rng(0)
    before = None
    for number in range(200):
        x = rng.normal(size=(1 + number % 8, 4)).astype(np.float32)
        begun = session.start({"x": x})
        if before is not None:
            expected, finish = before
            np.testing.assert_allclose(finish()["y"], expected, rtol=1e-6, atol=1e-6)
        before = (affine(x)["y"], begun)
        if session.depth == 1:
            np.testing.assert_allclose(begun()["y"], affine(x)["y"], rtol=1e-6, atol=1e-6)
            before = None
    session.close()


def test_a_run_that_is_refused_leaves_its_bank_to_the_next(session: TrtSession) -> None:
    x = np.ones((2, 4), np.float32)
    for _ in range(5):
        with pytest.raises(InputError):
            session.start({"x": np.ones((99, 4), np.float32)})
    for _ in range(5):
        np.testing.assert_array_equal(session.run({"x": x})["y"], affine(x)["y"])


def test_two_sessions_share_a_thread_and_close_in_any_order(library: TensorRT, plan: bytes) -> None:
    first, second = opened(library, plan), opened(library, plan)
    x = np.ones((2, 4), np.float32)
    first.run({"x": x})
    first.close()
    np.testing.assert_array_equal(second.run({"x": x})["y"], affine(x)["y"])
    second.close()


def test_an_integer_that_the_engine_cannot_hold_is_refused(
    library: TensorRT, tmp_path: Path
) -> None:
    file = save(gather_model(), tmp_path / "gather.onnx")
    index = TensorSpec(name="i", datatype="INT64", shape=(1,))
    shape = ShapeRange(min=(1,), opt=(1,), max=(1,))
    profile = Profile(ranges={"i": shape})
    request = EngineRequest(
        onnx=file,
        precision="fp32",
        profiles=(profile,),
    )
    session = TrtSession.open(
        engine_from_onnx(request, library).plan,
        library=library,
        inputs=(index,),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(1,)),),
        profile=profile,
    )
    assert session.run({"i": np.array([2])})["y"].tolist() == [2.0]
    if library.major_minor < (10, 0):  # TensorRT 8 has no INT64
        with pytest.raises(InputError, match="values must lie in"):
            session.run({"i": np.array([1 << 40])})
    session.close()


@pytest.mark.parametrize("content", [b"", b"not an engine", bytes(4096)])
def test_bytes_that_are_no_engine_are_refused(library: TensorRT, content: bytes) -> None:
    with pytest.raises(ModelError, match="refuses the engine"):
        opened(library, content)


def test_an_engine_of_another_model_is_refused(library: TensorRT, plan: bytes) -> None:
    other = (TensorSpec(name="z", datatype="FP32", shape=("batch", 4)),)
    with pytest.raises(ModelError, match=r"inputs \['x'\], the manifest says \['z'\]"):
        TrtSession.open(
            plan, library=library, inputs=other, outputs=AFFINE_OUTPUTS, profile=AFFINE_PROFILE
        )


def test_opening_and_closing_many_times_leaves_device_memory_as_it_was(
    library: TensorRT, plan: bytes
) -> None:
    import pycuda.driver as cuda

    x = {"x": np.ones((2, 4), np.float32)}
    free = []
    for number in range(220):
        session = opened(library, plan)
        for _ in range(GRAPH_AT_RUN + 1):
            session.run(x)
        session.close()
        if number >= 20:
            with session.device_context:
                free.append(cuda.mem_get_info()[0])
    assert free[-1] >= free[0]


def model_of(nodes: list, inputs: list, outputs: list) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "net", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def built(library: TensorRT, model: onnx.ModelProto, profile: Profile, folder: Path) -> bytes:
    request = EngineRequest(
        onnx=save(model, folder / "model.onnx"), precision="fp32", profiles=(profile,),
    )  # fmt: skip
    return engine_from_onnx(request, library).plan


def test_outputs_whose_size_depends_on_values(library: TensorRT, tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    model = model_of(
        [helper.make_node("NonZero", ["x"], ["y"])],
        [value("x", TensorProto.FLOAT, ["rows", 4])],
        [value("y", TensorProto.INT64, [2, "found"])],
    )
    profile = Profile(ranges={"x": ShapeRange(min=(1, 4), opt=(4, 4), max=(64, 4))})
    plan = built(library, model, profile, tmp_path)

    def opened() -> TrtSession:
        return TrtSession.open(
            plan,
            library=library,
            inputs=(TensorSpec(name="x", datatype="FP32", shape=("rows", 4)),),
            outputs=(TensorSpec(name="y", datatype="INT64", shape=(2, "found")),),
            profile=profile,
        )

    if library.major_minor < (8, 6):
        with pytest.raises(ModelError, match="past the memory it asked for"):
            opened()
        return
    session = opened()
    rng = np.random.default_rng(0)
    for rows in (1, 64, 3, 3, 3, 3, 17):
        x = (rng.random((rows, 4)) > 0.5).astype(np.float32)
        np.testing.assert_array_equal(session.run({"x": x})["y"], np.stack(np.nonzero(x)))
    assert session.run({"x": np.zeros((2, 4), np.float32)})["y"].shape == (2, 0)
    assert session.graphs == 0
    session.close()


@pytest.mark.parametrize("use_graphs", [True, False])
def test_state_stays_on_the_device_from_run_to_run(
    library: TensorRT, tmp_path: Path, use_graphs: bool
) -> None:
    value = helper.make_tensor_value_info
    model = model_of(
        [
            helper.make_node("Add", ["x", "sum"], ["next_sum"]),
            helper.make_node("Neg", ["next_sum"], ["y"]),
        ],
        [value(name, TensorProto.FLOAT, [1, 4]) for name in ("x", "sum")],
        [value(name, TensorProto.FLOAT, [1, 4]) for name in ("next_sum", "y")],
    )
    profile = Profile(ranges={"x": ShapeRange(min=(1, 4), opt=(1, 4), max=(1, 4))})
    spec = TensorSpec(name="sum", datatype="FP32", shape=(1, 4))
    session = TrtSession.open(
        built(library, model, profile, tmp_path),
        library=library,
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(1, 4)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(1, 4)),),
        profile=profile,
        states=(StatePair(input=spec, output="next_sum"),),
        use_graphs=use_graphs,
    )
    rng = np.random.default_rng(0)
    for _ in range(2):
        total = np.zeros((1, 4), np.float32)
        for _ in range(3 * GRAPH_AT_RUN + 1):
            x = rng.integers(-9, 9, (1, 4)).astype(np.float32)
            total += x
            np.testing.assert_array_equal(session.run({"x": x})["y"], -total)
        session.reset_state()
    assert session.graphs == int(use_graphs)
    session.close()


def test_a_build_tells_its_progress_and_counts_its_layers(
    library: TensorRT, tmp_path: Path
) -> None:
    steps: list[tuple[str, int, int]] = []

    def progress(*step: object) -> bool:
        steps.append(step)  # type: ignore[arg-type]
        return True

    request = EngineRequest(
        onnx=save(affine_model(), tmp_path / "affine.onnx"), precision="fp32",
        profiles=(AFFINE_PROFILE,),
    )  # fmt: skip
    plan = engine_from_onnx(request, library, progress=progress).plan
    assert steps
    assert all(0 < done <= total for _, done, total in steps)
    session = opened(library, plan)
    assert sum(session.layers().values()) > 0
    assert session.memory_bytes >= 0
    session.close()


def test_layers_are_timed_past_a_graph_and_the_answers_stay_right(
    library: TensorRT, plan: bytes
) -> None:
    session, x = opened(library, plan), np.ones((2, 4), np.float32)
    for _ in range(GRAPH_AT_RUN + 1):
        session.run({"x": x})
    layers = layers_of_runs(session, {"x": x}, runs=5, trt=library.module)
    assert layers
    assert all(layer.mean_ms > 0 for layer in layers)
    assert {layer.name for layer in layers} & {
        str(layer.get("Name")) for layer in session.layer_details()
    }
    np.testing.assert_allclose(session.run({"x": x})["y"], affine(x)["y"], rtol=1e-6)
    session.close()
