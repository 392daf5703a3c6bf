"""The process that meets an engine first: it opens or builds one, and may die of it.

A damaged engine can crash TensorRT, and so can a missing driver; here nobody else is hurt. The
parent is `engine_process`: it sends a ChildRequest on standard input, hands over descriptors of
memory files, and reads one JSON Report a line from the descriptor given as the last argument.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from edge.chat.golden import golden_logits
from edge.chat.spec import DecoderSpec
from edge.chat.trt_whole import TrtWholeDecoder
from edge.cuda_query import free_memory_bytes
from edge.engine_builder import EngineRequest, engine_from_onnx
from edge.errors import EdgeError, ModelError
from edge.files import read_capped
from edge.manifest import LOGITS, TOKENS, Model, Precision
from edge.sealed import memory_content
from edge.self_test import SelfTest, run_self_test
from edge.spec import AnyArray, Feeds
from edge.tensorrt_library import TensorRT, TensorRtBackend, load_tensorrt
from edge.trt_session import TrtSession

_PR_SET_PDEATHSIG = 1
_NICENESS = 10
_MAX_GOLDEN_BYTES = 1 << 32


@dataclass(frozen=True, slots=True, kw_only=True)
class TryRequest:
    """Open an engine and run the golden set. engine: descriptor of its bytes.

    golden: artifact path to the file that holds it, verified by the parent. decoder: of a whole
    chat model, which is tried in one lane.
    """

    backend: TensorRtBackend
    model: Model
    precision: Precision
    engine: int
    golden: dict[str, str]
    decoder: DecoderSpec | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """Build an engine.

    engine, timing_cache: descriptors of files that the results go to, in memory or not; the latter
    may hold the timing cache of an earlier build.
    """

    backend: TensorRtBackend
    request: EngineRequest
    engine: int
    timing_cache: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildRequest:
    """One of the two."""

    attempt: TryRequest | None = None
    build: BuildRequest | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A line from the child: a step of a build while `phase` is set, else the end.

    code, error: of the EdgeError that ended it. memory_bytes: of the device, taken by the opened
    engine. layers: their number by precision. plugins: layers from outside TensorRT.
    """

    phase: str | None = None
    done: int = 0
    total: int = 0
    code: str | None = None
    error: str | None = None
    self_test: SelfTest | None = None
    seconds: float = 0.0
    memory_bytes: int = 0
    layers: dict[str, int] = field(default_factory=dict)
    plugins: tuple[str, ...] = ()


def main() -> None:
    """Read the request, do it, report, and leave without the backends' exit handlers."""
    _die_with_parent()
    logging.basicConfig(level="WARNING", format="%(message)s")
    # What TensorRT complains of is in the error that is reported.
    logging.getLogger("edge.tensorrt_library").setLevel(logging.CRITICAL)
    report_to = int(sys.argv[-1])

    def tell(report: Report) -> None:
        os.write(report_to, msgspec.json.encode(report) + b"\n")

    request = msgspec.json.decode(
        sys.stdin.buffer.read(), type=ChildRequest, dec_hook=lambda kind, text: kind(text)
    )
    try:
        if request.attempt is not None:
            tell(_try(request.attempt))
        if request.build is not None:
            tell(_build(request.build, tell))
    except EdgeError as error:
        tell(Report(code=error.code, error=str(error)))
    # Destructors of a half-opened engine may crash; nothing is left to save here.
    os._exit(0)


def _try(request: TryRequest) -> Report:
    begun = time.monotonic()
    library = load_tensorrt(request.backend)
    if os.fstat(request.engine).st_size == 0:
        raise ModelError("the engine is empty; build it again")
    with mmap.mmap(request.engine, 0, prot=mmap.PROT_READ) as plan:
        if request.decoder is not None:
            return _try_chat(request, request.decoder, plan, library, begun)
        session = TrtSession.open(
            plan,
            library=library,
            inputs=request.model.inputs,
            outputs=request.model.outputs,
            profile=request.model.profile,
        )
        return Report(
            self_test=_tested(request, session.run),
            seconds=time.monotonic() - begun,
            memory_bytes=session.memory_bytes,
            layers=session.layers(),
        )


def _try_chat(
    request: TryRequest, spec: DecoderSpec, plan: mmap.mmap, library: TensorRT, begun: float
) -> Report:
    before = free_memory_bytes()
    decoder = TrtWholeDecoder.open(spec, plan, library=library, lanes=1)

    def infer(feeds: Feeds) -> dict[str, AnyArray]:
        return {LOGITS: golden_logits(decoder, feeds[TOKENS])}

    result, after = _tested(request, infer), free_memory_bytes()
    taken = 0 if before is None or after is None else max(0, before - after)
    return Report(self_test=result, seconds=time.monotonic() - begun, memory_bytes=taken)


def _tested(request: TryRequest, infer: Callable[[Feeds], dict[str, AnyArray]]) -> SelfTest:
    return run_self_test(
        request.model,
        request.precision,
        infer=infer,
        read=lambda path: read_capped(Path(request.golden[path]), max_bytes=_MAX_GOLDEN_BYTES),
    )


def _build(request: BuildRequest, tell: Callable[[Report], None]) -> Report:
    library = load_tensorrt(request.backend)

    def progress(phase: str, done: int, total: int) -> bool:
        tell(Report(phase=phase, done=done, total=total))
        return True

    os.nice(_NICENESS)  # whatever is served meanwhile goes first
    free = free_memory_bytes()
    wanted = replace(
        request.request,
        timing_cache=memory_content(request.timing_cache),
        workspace_bytes=None if free is None else free // 2,
    )
    built = engine_from_onnx(wanted, library, progress=progress)
    _write(request.engine, built.plan)
    _write(request.timing_cache, built.timing_cache)
    return Report(seconds=built.seconds, plugins=built.plugins)


def _write(descriptor: int, content: bytes | memoryview) -> None:
    os.ftruncate(descriptor, 0)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.seek(0)
        file.write(content)


def _die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends; see prctl(2)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
