"""Build an engine on this machine for this machine, try it here, and say what it is.

`edge-kit build --target this` calls it, and `edge-agent build-engine` on another machine, which
takes the job on standard input and writes frames to standard output: `edge-kit build --on`.
A frame is the word EKIT, four bytes of length, most significant first, then msgpack.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

import msgspec

from edge.engine_builder import EngineRequest, Progress
from edge.engine_child import BuildRequest, TryRequest
from edge.engine_process import AttemptError, build_and_try
from edge.errors import BuildError
from edge.manifest import EngineFacts, Model, Precision
from edge.matching import machine_problem
from edge.sealed import memory_content, memory_file
from edge.self_test import SelfTest
from edge.target import Target, detect_target
from edge.tensorrt_library import TensorRtBackend, takes_types

MAX_FRAME_BYTES = 1 << 31
_MAGIC = b"EKIT"
_HEAD = struct.Struct(">4sI")
_Message = TypeVar("_Message")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineJob:
    """What to build and how to test it.

    graph, typed_graph: ONNX with its weights inside, for a TensorRT that takes precision from
    flags and from types. model: interface, profile and golden set. golden: its tensors by
    artifact path. calibration_cache, dla_core: see `EngineRequest`.
    """

    precision: Precision
    graph: bytes
    typed_graph: bytes
    model: Model
    golden: dict[str, bytes]
    optimization_level: int = 3
    timeout_s: float = 3600.0
    calibration_cache: bytes = b""
    dla_core: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineResult:
    """An engine that passed its self-test on the machine that built it."""

    plan: bytes
    backend: TensorRtBackend
    precision: Precision
    typed: bool
    engine: EngineFacts
    self_test: SelfTest


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A message of a remote build: a step, or the result, or the error that ended it."""

    step: tuple[str, int, int] | None = None
    result: EngineResult | None = None
    error: str | None = None


def run_job(
    job: EngineJob,
    *,
    progress: Progress = lambda phase, done, total: True,
    detect: Callable[[], Target] = detect_target,
) -> EngineResult:
    """Build and try the engine in child processes; raises BuildError with what went wrong."""
    target = detect()
    backend = _backend(target)
    version = str(target.runtimes[backend])
    typed = takes_types(backend, version)
    with tempfile.TemporaryDirectory(prefix="edge-kit-") as scratch:
        graph = _write(Path(scratch) / "graph.onnx", job.typed_graph if typed else job.graph)
        golden = {
            path: str(_write(Path(scratch) / f"golden-{number}", content))
            for number, (path, content) in enumerate(job.golden.items())
        }
        engine, timings = memory_file(), memory_file()
        try:
            built, tried = build_and_try(
                BuildRequest(
                    backend=backend,
                    request=EngineRequest(
                        onnx=graph,
                        precision=job.precision,
                        profiles=(),
                        optimization_level=job.optimization_level,
                        calibration_cache=job.calibration_cache,
                        dla_core=job.dla_core,
                    ),
                    engine=engine,
                    timing_cache=timings,
                ),
                TryRequest(
                    backend=backend,
                    model=job.model,
                    precision=job.precision,
                    engine=engine,
                    golden=golden,
                ),
                build_timeout_s=job.timeout_s,
                open_timeout_s=job.timeout_s,
                progress=progress,
            )
            plan = memory_content(engine)
        except AttemptError as error:
            raise BuildError(f"no engine for {target.name}: {error}") from error
        finally:
            os.close(engine)
            os.close(timings)
    assert tried.self_test is not None  # noqa: S101 - a try ends with one, or raises
    facts = EngineFacts(
        device=target.device or target.name,
        kind="jetson" if target.kind == "jetson" else "desktop",
        arch=target.arch,
        runtime=version,
        sms=(str(target.sm),),
        portable=backend == "trt-rtx",
        sm_count=target.sm_count,
        cuda=None,
        memory_bytes=tried.memory_bytes,
        dla_cores=0 if job.dla_core is None else job.dla_core + 1,
        plugins=built.plugins,
        layers=tried.layers,
        build_seconds=round(built.seconds, 3),
        tried=True,
    )
    return EngineResult(
        plan=plan,
        backend=backend,
        precision=job.precision,
        typed=typed,
        engine=facts,
        self_test=tried.self_test,
    )


def serve_job(reader: IO[bytes], writer: IO[bytes]) -> None:
    """Do one job that arrives on reader and answer on writer; every error becomes a Frame."""

    def progress(phase: str, done: int, total: int) -> bool:
        write_frame(writer, Frame(step=(phase, done, total)))
        return True

    try:
        job = read_frame(reader, EngineJob)
        if job is None:
            raise BuildError("no job came on standard input; `edge-kit build --on` sends one")
        write_frame(writer, Frame(result=run_job(job, progress=progress)))
    except BuildError as error:
        write_frame(writer, Frame(error=str(error)))


def write_frame(writer: IO[bytes], message: object) -> None:
    """Write one message; raises BuildError if it is too large."""
    content = msgspec.msgpack.encode(message)
    if len(content) > MAX_FRAME_BYTES:
        raise BuildError(f"{len(content)} bytes do not fit one message; build on the device itself")
    writer.write(_HEAD.pack(_MAGIC, len(content)))
    writer.write(content)
    writer.flush()


def read_frame(reader: IO[bytes], kind: type[_Message]) -> _Message | None:
    """Return one message, or None at the end of the stream; raises BuildError for nonsense."""
    head = reader.read(_HEAD.size)
    if not head:
        return None
    magic, size = _HEAD.unpack(head) if len(head) == _HEAD.size else (b"", 0)
    if magic != _MAGIC or size > MAX_FRAME_BYTES:
        raise BuildError("the other side does not speak this protocol; install the same edge-kit")
    try:
        return msgspec.msgpack.decode(reader.read(size), type=kind)
    except msgspec.MsgspecError as error:
        raise BuildError(
            f"the other side sent something else ({error}); install the same edge-kit there"
        ) from error


def _backend(target: Target) -> TensorRtBackend:
    problems = []
    for backend in ("trt", "trt-rtx"):
        problem = machine_problem(backend, target)
        if problem is None:
            return backend
        problems.append(problem.reason)
    raise BuildError(f"this machine ({target.name}) cannot build engines: {problems[0]}")


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
