"""Makes a candidate ready to be opened: its bytes verified, built if need be, and tried.

What TensorRT is asked to open here has been opened in a child process before, by these very
bytes, on this very machine, and reproduced the golden set there.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from edge.bundle import Bundle
from edge.choice import Candidate
from edge.config import AgentConfig
from edge.engine_builder import EngineRequest, Progress
from edge.engine_cache import EngineCache, cache_key
from edge.engine_child import BuildRequest, Report, TryRequest
from edge.engine_process import AttemptError, attempt, build_and_try
from edge.errors import BundleError, EdgeError
from edge.manifest import Model, Variant
from edge.matching import GPU_MEANS
from edge.ort_session import OrtSession
from edge.sealed import Sealed, memory_content, memory_file
from edge.self_test import SelfTest
from edge.session import Session
from edge.session_messages import OpenSession
from edge.session_process import SessionProcess
from edge.target import Target, machine_facts
from edge.tensorrt_library import TensorRtBackend, load_tensorrt
from edge.trt_session import TrtSession


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A candidate that may be opened on every GPU that is like the first.

    open: called with the number of a GPU, in the thread that will own the session. close: frees
    what opening needs; call it once all are open.
    """

    open: Callable[[int], Session]
    close: Callable[[], None] = lambda: None


Prepare = Callable[[Bundle, Model, Candidate], Prepared]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What the child found when it tried an engine; kept beside an engine that was built here."""

    self_test: SelfTest
    memory_bytes: int
    build_seconds: float = 0.0
    layers: dict[str, int] = field(default_factory=dict)


class Preparer:
    """Prepares candidates on one machine; `prepare` is a Prepare.

    progress: told of every step of a build; it may take an hour. stop: ends a running child.
    """

    def __init__(
        self,
        config: AgentConfig,
        target: Target,
        *,
        progress: Progress,
        stop: threading.Event,
    ) -> None:
        self._config = config
        self._target = target
        self._progress = progress
        self._stop = stop
        self._cache = EngineCache(config.cache, max_bytes=config.cache_bytes)

    def prepare(self, bundle: Bundle, model: Model, candidate: Candidate) -> Prepared:
        """Return what opens the candidate; raises AttemptError with the code of the refusal."""
        variant = candidate.variant
        # A fault on one GPU ends the use of all others in its process.
        several = candidate.means in GPU_MEANS and self._target.gpus > 1
        is_isolated = self._config.isolate or several
        if variant.backend == "ort":
            open_graph = self._open_ort_apart if is_isolated else self._open_ort
            return Prepared(open=functools.partial(open_graph, bundle, model, candidate))
        if candidate.means == "build":
            engine = self._built(bundle, model, variant, variant.backend)
        else:
            engine = self._verified(bundle, model, variant, variant.backend)
        open_engine = self._open_engine_apart if is_isolated else _open_engine
        return Prepared(
            open=functools.partial(open_engine, engine, model, variant.backend),
            close=engine.close,
        )

    def _open_ort(self, bundle: Bundle, model: Model, candidate: Candidate, device: int) -> Session:
        return OrtSession.open(
            bundle.path(candidate.variant.files[0]),
            inputs=model.inputs,
            outputs=model.outputs,
            profile=model.profile,
            intra_op_threads=self._config.intra_op_threads,
            device=device if candidate.means == "ort-cuda" else None,
        )

    def _open_ort_apart(
        self, bundle: Bundle, model: Model, candidate: Candidate, device: int
    ) -> Session:
        request = OpenSession(
            backend="ort",
            inputs=model.inputs,
            outputs=model.outputs,
            profile=model.profile,
            device=device if candidate.means == "ort-cuda" else None,
            graph=str(bundle.path(candidate.variant.files[0]).resolve()),
            intra_op_threads=self._config.intra_op_threads,
        )
        return SessionProcess.open(request, open_timeout_s=self._config.open_timeout_s)

    def _open_engine_apart(
        self, engine: Sealed, model: Model, backend: TensorRtBackend, device: int
    ) -> Session:
        request = OpenSession(
            backend=backend,
            inputs=model.inputs,
            outputs=model.outputs,
            profile=model.profile,
            device=device,
            engine=engine.fileno(),
        )
        return SessionProcess.open(request, open_timeout_s=self._config.open_timeout_s)

    def _verified(
        self, bundle: Bundle, model: Model, variant: Variant, backend: TensorRtBackend
    ) -> Sealed:
        """Return the engine of the bundle; a verdict of an earlier start is as good as a try."""
        artifact = bundle.manifest.artifact(variant.files[0])
        path = bundle.path(artifact.path)
        try:
            engine = Sealed.from_file(path, size=artifact.size, sha256=artifact.sha256)
        except BundleError as error:
            raise AttemptError("digest-mismatch", str(error)) from error
        except EdgeError as error:
            raise AttemptError("open-failed", str(error)) from error
        key = cache_key("tried", artifact.sha256, *machine_facts(self._target, backend))
        verdict = self._cache.get(key, Tried)
        if verdict is not None:
            verdict.content.close()
        else:
            try:
                report = attempt(
                    self._trial(bundle, model, variant, backend, engine.fileno()),
                    timeout_s=self._config.open_timeout_s,
                    stop=self._stop,
                )
            except AttemptError:
                engine.close()
                raise
            self._keep(key, b"", report, build_seconds=0.0)
        return engine

    def _built(
        self, bundle: Bundle, model: Model, variant: Variant, backend: TensorRtBackend
    ) -> Sealed:
        """Return an engine of an earlier start, or build one; only one that passes is kept."""
        manifest = bundle.manifest
        request = EngineRequest(
            onnx=bundle.path(variant.files[0]), precision=variant.precision, profiles=()
        )
        files = [manifest.artifact(path).sha256 for path in variant.files]
        how = (variant.precision, model.profile, request.optimization_level, request.tf32)
        machine = machine_facts(self._target, backend)
        key = cache_key("engine", files, how, machine)
        entry = self._cache.get(key, Tried)
        if entry is not None:
            return entry.content
        self._progress("starting", 0, 1)
        logger.info("building an engine from %s: this takes minutes", variant.files[0])
        timing_key = cache_key("timing", machine)
        engine, timings = memory_file(), memory_file()
        try:
            known = self._cache.get(timing_key, int)
            if known is not None:
                os.write(timings, bytes(known.content.view()))
                known.content.close()
            built, tried = build_and_try(
                BuildRequest(backend=backend, request=request, engine=engine, timing_cache=timings),
                self._trial(bundle, model, variant, backend, engine),
                build_timeout_s=self._config.build_timeout_s,
                open_timeout_s=self._config.open_timeout_s,
                progress=self._progress,
                stop=self._stop,
            )
            timed = memory_content(timings)
            if timed:
                self._put(timing_key, timed, len(timed))
            sealed = Sealed.from_memory_file(os.dup(engine))
        finally:
            os.close(engine)
            os.close(timings)
        logger.info(
            "engine built model=%s variant=%s seconds=%.0f bytes=%d layers=%s",
            model.name, variant.id, built.seconds, sealed.size, tried.layers,
        )  # fmt: skip
        self._keep(key, bytes(sealed.view()), tried, build_seconds=built.seconds)
        return sealed

    @staticmethod
    def _trial(
        bundle: Bundle, model: Model, variant: Variant, backend: TensorRtBackend, engine: int
    ) -> TryRequest:
        cases = model.golden.cases
        golden = {t.artifact for case in cases for t in (*case.inputs, *case.outputs)}
        return TryRequest(
            backend=backend,
            model=model,
            precision=variant.precision,
            engine=engine,
            golden={path: str(bundle.path(path)) for path in golden},
        )

    def _keep(self, key: str, content: bytes, report: Report, *, build_seconds: float) -> None:
        assert report.self_test is not None  # noqa: S101 - a try ends with one, or raises
        tried = Tried(
            self_test=report.self_test,
            memory_bytes=report.memory_bytes,
            build_seconds=build_seconds,
            layers=report.layers,
        )
        self._put(key, content, tried)

    def _put(self, key: str, content: bytes, facts: object) -> None:
        """Write to the cache if possible; a full disk must not keep a model from serving."""
        try:
            self._cache.put(key, content, facts)
        except EdgeError as error:
            logger.warning("not cached, so the next start takes as long: %s", error)


def _open_engine(engine: Sealed, model: Model, backend: TensorRtBackend, device: int) -> Session:
    return TrtSession.open(
        engine.view(),
        library=load_tensorrt(backend),
        inputs=model.inputs,
        outputs=model.outputs,
        profile=model.profile,
        device=device,
    )
