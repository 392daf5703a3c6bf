"""A child that crashes, hangs, lies or is cancelled costs a refusal and nothing else."""

from __future__ import annotations

import os
import platform
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edge.cuda_query import cuda_problem
from edge.engine_builder import EngineRequest
from edge.engine_child import BuildRequest, ChildRequest, TryRequest
from edge.engine_process import AttemptError, attempt, build, run_child
from edge.sealed import Sealed, memory_file
from tests.bundles import affine_parts
from tests.fakes import DEADLINE_S, FakeClock
from tests.models import AFFINE_PROFILE, affine_model, save

REPORT = "os.write(int(sys.argv[-1]), b'%s\\n')\n"
on_x86 = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="TensorRT-RTX is built for x86-64 only"
)


def run(code: str, **options: object) -> object:
    code = "import os, signal, sys, time\n" + code
    return run_child(ChildRequest(), (), code=code, **{"timeout_s": DEADLINE_S, **options})


def refusal(code: str, **options: object) -> AttemptError:
    with pytest.raises(AttemptError) as caught:
        run(code, **options)
    return caught.value


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGKILL"])
def test_a_signal_is_named(name: str) -> None:
    error = refusal(f"os.kill(os.getpid(), signal.{name})")
    assert error.refusal == "crashed"
    assert name in str(error)


def test_an_exit_without_a_report_is_a_crash() -> None:
    assert "status 3" in str(refusal("sys.exit(3)"))
    assert refusal("").refusal == "crashed"


def test_a_traceback_in_the_child_is_a_crash() -> None:
    assert refusal("sys.stderr = open(os.devnull, 'w'); 1 / 0").refusal == "crashed"


def test_a_child_that_hangs_is_killed() -> None:
    clock = FakeClock()
    code = REPORT % b'{"phase":"p","done":%d,"total":9}'.decode() % os.getpid() + "signal.pause()"
    seen = []

    def progress(phase: str, done: int, total: int) -> bool:
        clock.advance(DEADLINE_S + 1)
        seen.append(done)
        return True

    error = refusal(code, progress=progress, clock=clock)
    assert error.refusal == "timed-out"
    assert seen == [os.getpid()]


def test_a_child_is_cancelled_by_its_progress_and_by_a_stop() -> None:
    code = REPORT % '{"phase":"p","done":1,"total":9}' + "signal.pause()"
    assert "cancelled" in str(refusal(code, progress=lambda *_: False))
    stop = threading.Event()
    stop.set()
    assert "the agent stops" in str(refusal("signal.pause()", stop=stop))


def test_a_child_that_never_reads_a_large_request_is_killed_in_time() -> None:
    clock = FakeClock()
    request = EngineRequest(onnx=Path("x" * (1 << 20)), precision="fp32", profiles=())
    build = BuildRequest(backend="trt", request=request, engine=0, timing_cache=0)

    def progress(*_: object) -> bool:
        clock.advance(DEADLINE_S + 1)
        return True

    code = "import os, signal, sys\n" + REPORT % '{"phase":"p","done":1,"total":9}'
    with pytest.raises(AttemptError) as caught:
        run_child(
            ChildRequest(build=build), (), code=code + "signal.pause()", timeout_s=DEADLINE_S,
            progress=progress, clock=clock,
        )  # fmt: skip
    assert caught.value.refusal == "timed-out"


@pytest.mark.parametrize("line", ["nonsense", "{", '{"seconds":"x"}'])
def test_a_report_that_is_none_is_a_crash(line: str) -> None:
    assert refusal(REPORT % line).refusal == "crashed"


def test_an_error_of_the_child_keeps_its_words() -> None:
    error = refusal(REPORT % '{"code":"self-test","error":"off by 0.5"}')
    assert (error.refusal, str(error)) == ("self-test-failed", "off by 0.5")


def test_no_descriptor_and_no_process_is_left_behind() -> None:
    before = set(Path("/proc/self/fd").iterdir())
    refusal("os.kill(os.getpid(), signal.SIGSEGV)")
    refusal(REPORT % '{"code":"model","error":"x"}' + "signal.pause()")
    assert set(Path("/proc/self/fd").iterdir()) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


PARENT = """
from edge.engine_child import ChildRequest
from edge.engine_process import run_child

child = '''
import os, signal
from edge.engine_child import _die_with_parent
_die_with_parent()
print(os.getpid(), flush=True)
signal.pause()
'''
run_child(ChildRequest(), (), timeout_s=60, code=child)
"""


def test_the_child_dies_with_its_parent_however_that_dies() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        handle = os.pidfd_open(child)
        parent.send_signal(signal.SIGKILL)
        # The pipe closes when the last process that holds it is gone: parent and child.
        assert parent.stdout.read() == ""
        assert select.select([handle], [], [], DEADLINE_S)[0], "the child is still there"
        os.close(handle)


@on_x86
def test_an_engine_is_built_in_a_child_with_progress(tmp_path: Path) -> None:
    engine, timings = memory_file(), memory_file()
    request = BuildRequest(
        backend="trt-rtx",
        request=EngineRequest(
            onnx=save(affine_model(), tmp_path / "affine.onnx"),
            precision="fp32",
            profiles=(AFFINE_PROFILE,),
            compute_capabilities=("SM89",),
        ),
        engine=engine,
        timing_cache=timings,
    )
    steps: list[tuple[str, int, int]] = []

    def progress(*step: object) -> bool:
        steps.append(step)  # type: ignore[arg-type]
        return True

    report = build(request, timeout_s=DEADLINE_S, progress=progress)
    assert report.seconds > 0
    assert Sealed.from_memory_file(engine).size > 1000
    assert len({phase for phase, _, _ in steps}) > 1
    os.close(timings)


@on_x86
@pytest.mark.skipif(cuda_problem() is None, reason="this machine has a GPU")
@pytest.mark.parametrize("backend", ["trt-rtx", "trt"])
def test_without_a_driver_an_engine_is_refused_and_nothing_crashes(backend: str) -> None:
    engine = Sealed.from_bytes(b"not an engine")
    request = TryRequest(
        backend=backend,  # type: ignore[arg-type]
        model=affine_parts()[0].models[0],
        precision="fp32",
        engine=engine.fileno(),
        golden={},
    )
    with pytest.raises(AttemptError, match=r"CUDA driver is not there|not importable") as caught:
        attempt(request, timeout_s=DEADLINE_S)
    assert caught.value.refusal == "backend-unavailable"
    engine.close()
