"""Makes a chat model that is one engine ready to be opened: verified or built, and tried.

As for other models (`preparing`), an engine is opened in a child process first: one that was built
where no such card is has never run at all. A device builds one from a graph of form "prefix".
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace

from edge.bundle import Bundle
from edge.chat.decoder import Decoder
from edge.chat.room import Room
from edge.chat.trt_whole import TrtWholeDecoder
from edge.chat.whole import WHOLE_FORMS, whole_profiles
from edge.choice import Candidate
from edge.config import AgentConfig
from edge.engine_builder import EngineRequest, Progress
from edge.engine_cache import EngineCache, cache_key
from edge.engine_child import BuildRequest, Report, TryRequest
from edge.engine_process import AttemptError, attempt, build
from edge.errors import BundleError, EdgeError
from edge.manifest import Model, Variant
from edge.sealed import Sealed, memory_content, memory_file
from edge.self_test import SelfTest
from edge.target import Target, machine_facts
from edge.tensorrt_library import TensorRtBackend, load_tensorrt

logger = logging.getLogger(__name__)

OpenDecoder = Callable[[Room], Decoder]


@dataclass(frozen=True, slots=True, kw_only=True)
class TriedWhole:
    """What the child found when it tried an engine; kept beside one that was built here."""

    self_test: SelfTest
    memory_bytes: int


class WholePreparer:
    """Prepares whole engines on one machine.

    progress: told of every step of a build. stop: ends a running child.
    """

    def __init__(
        self,
        config: AgentConfig,
        target: Target,
        cache: EngineCache,
        *,
        progress: Progress,
        stop: threading.Event,
    ) -> None:
        self._config = config
        self._target = target
        self._cache = cache
        self._progress = progress
        self._stop = stop

    def prepare(
        self, bundle: Bundle, candidate: Candidate, backend: TensorRtBackend
    ) -> OpenDecoder:
        """Return what opens the candidate; raises AttemptError with the code of the refusal."""
        variant = candidate.variant
        spec = variant.decoder
        assert spec is not None  # noqa: S101 - checked with the Manifest
        if spec.form not in WHOLE_FORMS or (variant.engine is None and spec.form != "prefix"):
            raise AttemptError(
                "open-failed",
                f"no TensorRT of this agent's runs a chat graph of form {spec.form!r}; build the "
                "model with this version of edge-kit",
            )
        model = next(m for m in bundle.manifest.models if variant in m.variants)
        make = self._built if variant.engine is None else self._verified
        engine = make(bundle, model, variant, backend)

        def opened(room: Room) -> Decoder:
            try:
                return TrtWholeDecoder.open(
                    replace(spec, context=room.context),
                    engine.view(),
                    library=load_tensorrt(backend),
                    lanes=room.lanes,
                )
            finally:
                engine.close()

        weakref.finalize(opened, engine.close)  # where it comes to no opening
        return opened

    def _verified(
        self, bundle: Bundle, model: Model, variant: Variant, backend: TensorRtBackend
    ) -> Sealed:
        """Return the engine of the bundle; a verdict of an earlier start is as good as a try."""
        artifact = bundle.manifest.artifact(variant.files[0])
        try:
            engine = Sealed.from_file(
                bundle.path(artifact.path), size=artifact.size, sha256=artifact.sha256
            )
        except BundleError as error:
            raise AttemptError("digest-mismatch", str(error)) from error
        except EdgeError as error:
            raise AttemptError("open-failed", str(error)) from error
        key = cache_key("tried", artifact.sha256, *machine_facts(self._target, backend))
        verdict = self._cache.get(key, TriedWhole)
        if verdict is not None:
            verdict.content.close()
            return engine
        try:
            self._keep(key, b"", self._tried(bundle, model, variant, backend, engine.fileno()))
        except AttemptError:
            engine.close()
            raise
        return engine

    def _built(
        self, bundle: Bundle, model: Model, variant: Variant, backend: TensorRtBackend
    ) -> Sealed:
        """Return an engine of an earlier start, or build one; only one that passes is kept."""
        assert variant.decoder is not None  # noqa: S101 - checked with the Manifest
        profiles = whole_profiles(variant.decoder, variant.precision)
        files = [bundle.manifest.artifact(path).sha256 for path in variant.files]
        machine = machine_facts(self._target, backend)
        key = cache_key("whole", files, variant.precision, profiles, machine)
        entry = self._cache.get(key, TriedWhole)
        if entry is not None:
            return entry.content
        self._progress("starting", 0, 1)
        logger.info("building an engine from %s: this takes minutes", variant.files[0])
        engine, timings = memory_file(), memory_file()
        try:
            request = EngineRequest(
                onnx=bundle.path(variant.files[0]), precision=variant.precision, profiles=profiles
            )
            build(
                BuildRequest(backend=backend, request=request, engine=engine, timing_cache=timings),
                timeout_s=self._config.build_timeout_s,
                progress=self._progress,
                stop=self._stop,
            )
            report = self._tried(bundle, model, variant, backend, engine)
            self._keep(key, memory_content(engine), report)
            return Sealed.from_memory_file(os.dup(engine))
        finally:
            os.close(engine)
            os.close(timings)

    def _tried(
        self, bundle: Bundle, model: Model, variant: Variant, backend: TensorRtBackend, engine: int
    ) -> Report:
        cases = model.golden.cases
        golden = {t.artifact for case in cases for t in (*case.inputs, *case.outputs)}
        request = TryRequest(
            backend=backend,
            model=model,
            precision=variant.precision,
            engine=engine,
            golden={path: str(bundle.path(path)) for path in golden},
            decoder=variant.decoder,
        )
        return attempt(request, timeout_s=self._config.open_timeout_s, stop=self._stop)

    def _keep(self, key: str, content: bytes, report: Report) -> None:
        """Write to the cache if possible; a full disk must not keep a model from serving."""
        assert report.self_test is not None  # noqa: S101 - a try ends with one, or raises
        tried = TriedWhole(self_test=report.self_test, memory_bytes=report.memory_bytes)
        try:
            self._cache.put(key, content, tried)
        except EdgeError as error:
            logger.warning("not cached, so the next start takes as long: %s", error)
