"""Sessions in a process of their own: the contract, and what happens when the process dies."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from edge.errors import BackendUnavailableError, InferenceError, ModelError
from edge.session import Session
from edge.session_messages import OpenSession, Placed, placed, tensors_from
from edge.session_process import FIRST_PAUSE_S, SessionProcess
from edge.shared_buffer import SharedBuffer
from edge.spec import TensorSpec
from tests.agents import make_config, running_agent
from tests.fakes import DEADLINE_S, FakeClock, open_descriptors
from tests.models import AFFINE_INPUTS, AFFINE_OUTPUTS, AFFINE_PROFILE, affine, affine_model
from tests.session_contract import SessionContract

X = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.fixture
def request_of_affine(tmp_path: Path) -> OpenSession:
    graph = tmp_path / "affine.onnx"
    graph.write_bytes(affine_model().SerializeToString())
    return OpenSession(
        backend="ort", inputs=AFFINE_INPUTS, outputs=AFFINE_OUTPUTS, profile=AFFINE_PROFILE,
        device=None, graph=str(graph), intra_op_threads=1,
    )  # fmt: skip


class TestContract(SessionContract):
    """The four promises, over a process border."""

    @pytest.fixture
    def open_session(self, request_of_affine: OpenSession) -> Callable[[], Session]:
        return lambda: SessionProcess.open(request_of_affine, open_timeout_s=DEADLINE_S)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def session(request_of_affine: OpenSession, clock: FakeClock) -> Iterator[SessionProcess]:
    session = SessionProcess.open(request_of_affine, open_timeout_s=DEADLINE_S, clock=clock)
    yield session
    session.close()


def run_when_back(session: SessionProcess) -> dict[str, np.ndarray]:
    """Ask until the process is there again; each try costs next to nothing."""
    for _ in range(100_000):
        with contextlib.suppress(InferenceError):
            return session.run({"x": X})
    raise AssertionError("it never came back")


def run_until_lost(session: SessionProcess) -> None:
    """Ask until the death of the process is noticed, at the second try at the latest."""
    for _ in range(3):
        session.run({"x": X})


def test_a_process_that_is_killed_fails_its_run_and_is_started_again(
    session: SessionProcess, clock: FakeClock
) -> None:
    first = session.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    with pytest.raises(InferenceError, match="its process is gone: killed by SIGKILL"):
        run_until_lost(session)
    with pytest.raises(InferenceError, match=r"is started again in 0\.5 s"):
        session.run({"x": X})
    clock.advance(FIRST_PAUSE_S)
    np.testing.assert_array_equal(run_when_back(session)["y"], affine(X)["y"])
    assert session.pid != first


def test_a_process_that_dies_again_and_again_is_started_less_and_less_often(
    session: SessionProcess, clock: FakeClock
) -> None:
    pauses = []
    for _ in range(3):
        assert session.pid is not None
        os.kill(session.pid, signal.SIGKILL)
        while session.pid is not None:  # one that is opening tells so until it is seen to be gone
            with pytest.raises(InferenceError):
                run_until_lost(session)
        before = clock.now
        while session.pid is None:
            clock.advance(FIRST_PAUSE_S / 2)
            with pytest.raises(InferenceError):
                session.run({"x": X})
        pauses.append(clock.now - before)
    assert pauses == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    run_when_back(session)  # the last one is being opened


def test_large_tensors_grow_the_shared_memory_and_stay_right(tmp_path: Path) -> None:
    graph = tmp_path / "affine.onnx"
    graph.write_bytes(affine_model().SerializeToString())
    largest = AFFINE_PROFILE.ranges["x"].max[0]
    wide = type(AFFINE_PROFILE)(
        ranges={"x": type(AFFINE_PROFILE.ranges["x"])(min=(1, 4), opt=(1, 4), max=(1 << 18, 4))}
    )
    request = OpenSession(
        backend="ort", inputs=AFFINE_INPUTS, outputs=AFFINE_OUTPUTS, profile=wide,
        device=None, graph=str(graph), intra_op_threads=1,
    )  # fmt: skip
    session = SessionProcess.open(request, open_timeout_s=DEADLINE_S)
    rng = np.random.default_rng(0)
    for rows in (1, 1 << 18, largest, 1 << 17):
        x = rng.normal(size=(rows, 4)).astype(np.float32)
        np.testing.assert_array_equal(session.run({"x": x})["y"], affine(x)["y"])
    session.close()


def test_what_opening_raised_there_is_raised_here(
    request_of_affine: OpenSession, tmp_path: Path
) -> None:
    before = open_descriptors()
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    values = {name: getattr(request_of_affine, name) for name in ("inputs", "outputs", "profile")}
    with pytest.raises(ModelError, match="cannot open"):
        SessionProcess.open(
            OpenSession(backend="ort", device=None, graph=str(broken), **values),
            open_timeout_s=DEADLINE_S,
        )
    with pytest.raises(BackendUnavailableError, match="CUDAExecutionProvider"):
        SessionProcess.open(
            OpenSession(backend="ort", device=0, graph=request_of_affine.graph, **values),
            open_timeout_s=DEADLINE_S,
        )
    assert open_descriptors() == before


def test_closing_leaves_no_process_and_no_descriptor(request_of_affine: OpenSession) -> None:
    before = open_descriptors()
    session = SessionProcess.open(request_of_affine, open_timeout_s=DEADLINE_S)
    pid = session.pid
    session.run({"x": X})
    session.close()
    assert open_descriptors() == before
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    "place",
    [
        Placed(name="y", datatype="FP32", shape=(2, 4), offset=0, size=1 << 40),
        Placed(name="y", datatype="FP32", shape=(2, 4), offset=-32, size=32),
        Placed(name="y", datatype="FP32", shape=(2, 4), offset=0, size=31),
        Placed(name="y", datatype="FP32", shape=(-2, -4), offset=0, size=32),
        Placed(name="y", datatype="BYTES", shape=(2,), offset=0, size=32),
    ],
)
def test_places_that_lie_are_refused(place: Placed) -> None:
    buffer = SharedBuffer.new()
    buffer.for_writing(64)[:32] = b"\xff" * 32
    with pytest.raises(InferenceError, match="wrongly"):
        tensors_from(buffer, (place,))
    buffer.close()


def test_strings_go_through_shared_memory_too() -> None:
    specs = (
        TensorSpec(name="n", datatype="FP32", shape=("b",)),
        TensorSpec(name="s", datatype="BYTES", shape=("b",)),
    )
    tensors = {
        "n": np.array([1, 2, 3], np.float32),
        "s": np.array([b"", b"a\x00b", b"long" * 999], object),
    }
    buffer = SharedBuffer.new()
    found = tensors_from(buffer, placed(buffer, tensors, specs))
    np.testing.assert_array_equal(found["n"], tensors["n"])
    assert found["s"].tolist() == tensors["s"].tolist()
    buffer.close()


def test_shared_memory_cannot_be_made_smaller_under_its_reader() -> None:
    buffer = SharedBuffer.new()
    buffer.for_writing(1 << 16)
    with pytest.raises(PermissionError):
        os.ftruncate(buffer.fileno(), 1)
    buffer.close()


def test_an_agent_survives_the_death_of_a_models_process_and_serves_on(tmp_path: Path) -> None:
    config = make_config(tmp_path, isolate=True)
    body = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
    with running_agent(config) as agent, httpx.Client(base_url=agent.url, timeout=60) as client:
        served = agent.serving.served["affine"]

        def ask() -> httpx.Response:
            return client.post("/v2/models/affine/infer", json=body)

        assert ask().json()["outputs"][0]["data"] == [3, 5, 7, 9]
        children = Path(f"/proc/self/task/{worker_thread(served.worker.workers[0])}/children")
        (pid,) = children.read_text().split()
        os.kill(int(pid), signal.SIGKILL)
        statuses = [ask().status_code]
        while statuses[-1] != 200:
            assert client.get("/v2/health/live").status_code == 200
            statuses.append(ask().status_code)
        assert set(statuses[:-1]) <= {500}
        assert ask().json()["outputs"][0]["data"] == [3, 5, 7, 9]
        assert client.get("/v2/health/ready").status_code == 200


def worker_thread(worker: object) -> int:
    return worker._thread.native_id  # type: ignore[attr-defined]
