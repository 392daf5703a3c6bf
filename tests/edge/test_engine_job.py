"""A build for this machine, and the stream that carries one to and from another."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import edge.engine_job
import edge.engine_process
from edge.engine_child import BuildRequest, Report, TryRequest
from edge.engine_job import EngineJob, Frame, read_frame, run_job, serve_job, write_frame
from edge.engine_process import AttemptError
from edge.errors import BuildError
from edge.self_test import SelfTest
from edge.target import Target
from tests.bundles import affine_parts

ORIN = Target(
    kind="jetson", arch="aarch64", name="NVIDIA Jetson AGX Orin", device="agx-orin-64gb",
    sm="8.7", sm_count=16, cuda="12.6", tensorrt="10.3.0",
)  # fmt: skip
NOTHING = Target(kind="cpu", arch="x86_64", name="no NVIDIA GPU", cuda_problem="no driver here")
MODEL = affine_parts()[0].models[0]
JOB = EngineJob(
    precision="fp16", graph=b"by flags", typed_graph=b"by types", model=MODEL,
    golden={"affine/golden/0/in/x.bin": np.arange(8, dtype=np.float32).tobytes()},
)  # fmt: skip
TRIED = Report(
    self_test=SelfTest(cases=1, output="y", relative_error=0.001, tolerance=0.01),
    memory_bytes=5,
    layers={"fp16": 3},
)


@pytest.fixture(autouse=True)
def children(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Stand-ins for both child processes; they record what they were given."""
    seen: list[str] = []

    def build(request: BuildRequest, *, progress: object, **_: object) -> Report:
        seen.append(request.request.onnx.read_text())
        assert callable(progress)
        progress("Timing", 1, 2)
        Path(f"/proc/self/fd/{request.engine}").write_bytes(b"a plan")
        return Report(seconds=2.0, plugins=("P",))

    def attempt(request: TryRequest, **_: object) -> Report:
        seen.append(Path(f"/proc/self/fd/{request.engine}").read_text())
        return TRIED

    monkeypatch.setattr(edge.engine_process, "build", build)
    monkeypatch.setattr(edge.engine_process, "attempt", attempt)
    monkeypatch.setattr(edge.engine_job, "detect_target", lambda: ORIN)
    return seen


def test_an_engine_is_built_tried_and_described(children: list[str]) -> None:
    result = run_job(JOB, detect=lambda: ORIN)
    assert children == ["by flags", "a plan"]
    assert (result.plan, result.backend, result.typed) == (b"a plan", "trt", False)
    facts = result.engine
    assert (facts.device, facts.sms, facts.sm_count, facts.runtime, facts.portable) == (
        "agx-orin-64gb", ("8.7",), 16, "10.3.0", False,
    )  # fmt: skip
    assert (facts.memory_bytes, facts.layers, facts.plugins) == (5, {"fp16": 3}, ("P",))


def test_a_tensorrt_that_reads_types_gets_the_typed_graph(children: list[str]) -> None:
    assert run_job(JOB, detect=lambda: replace(ORIN, tensorrt="10.13.3")).typed
    assert children[0] == "by types"


def test_a_machine_that_cannot_build_says_why() -> None:
    with pytest.raises(BuildError, match="no driver here"):
        run_job(JOB, detect=lambda: NOTHING)


def test_an_engine_that_fails_its_self_test_is_not_returned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def attempt(*_: object, **__: object) -> Report:
        raise AttemptError("self-test-failed", "off by 0.5")

    monkeypatch.setattr(edge.engine_process, "attempt", attempt)
    with pytest.raises(BuildError, match=r"AGX Orin: off by 0\.5"):
        run_job(JOB, detect=lambda: ORIN)


def frames(content: bytes) -> list[Frame]:
    reader = io.BytesIO(content)
    return list(iter(lambda: read_frame(reader, Frame), None))


def served(content: bytes) -> list[Frame]:
    answer = io.BytesIO()
    serve_job(io.BytesIO(content), answer)
    return frames(answer.getvalue())


def test_a_job_that_arrives_as_a_stream_is_answered_with_steps_and_a_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(run_job.__kwdefaults__, "detect", lambda: ORIN)
    stream = io.BytesIO()
    write_frame(stream, JOB)
    step, end = served(stream.getvalue())
    assert step.step == ("Timing", 1, 2)
    assert end.result is not None
    assert end.result.plan == b"a plan"
    assert end.result.self_test == TRIED.self_test


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no job came"),
        (b"Welcome to Ubuntu\n", "does not speak this protocol"),
        (b"\0\0", "does not speak this protocol"),
        (b"EKIT\0\0\0\4abcd", "sent something else"),
        (b"EKIT\0\0\1\0short", "sent something else"),
        (b"EKIT\xff\xff\xff\xff", "does not speak this protocol"),
    ],
)
def test_anything_else_is_answered_with_an_error(content: bytes, words: str) -> None:
    (end,) = served(content)
    assert words in str(end.error)
