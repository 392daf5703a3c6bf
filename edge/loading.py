"""Opens the models of a bundle: for each the best candidate that opens and passes its self-test."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from edge.batching import Plan
from edge.choice import Candidate, Choice, Ranking, Refusal, choice_from, rank
from edge.config import AgentConfig
from edge.engine_process import AttemptError
from edge.errors import EdgeError
from edge.files import read_capped
from edge.latency import LatencyWindow
from edge.manifest import Model
from edge.preparing import Prepare, Preparer
from edge.self_test import SelfTest, run_self_test
from edge.serving import ServedModel, Serving
from edge.statistics import ModelStatistics
from edge.target import Target, detect_target
from edge.worker import Worker

logger = logging.getLogger(__name__)


class Loader:
    """Fills `serving.served`, one model after the other; runs in a thread of its own.

    prepare: how a candidate is opened; None is the real way. is_building: whether a build runs,
    which may take longer than any start.
    """

    def __init__(
        self,
        serving: Serving,
        config: AgentConfig,
        *,
        prepare: Prepare | None = None,
        detect: Callable[[], Target] = detect_target,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.is_building = False
        self._serving = serving
        self._config = config
        self._prepare = prepare
        self._detect = detect
        self._clock = clock
        self._stop = threading.Event()

    def stop(self) -> None:
        """End a child process that builds or tries an engine; its candidate is refused."""
        self._stop.set()

    def load_all(self) -> None:
        """Open every model; raises the EdgeError that keeps one from serving."""
        target = self._serving.target = self._detect()
        logger.info(
            "device name=%s sm=%s cuda=%s tensorrt=%s tensorrt_rtx=%s onnxruntime=%s",
            target.name, target.sm, target.cuda, target.tensorrt, target.tensorrt_rtx,
            target.onnxruntime,
        )  # fmt: skip
        prepare = self._prepare
        if prepare is None:
            prepare = Preparer(
                self._serving.bundle,
                self._config,
                target,
                progress=self._note_progress,
                stop=self._stop,
            ).prepare
        for model in self._serving.bundle.manifest.models:
            served = self._load(model, target, prepare)
            self._serving.served = {**self._serving.served, model.name: served}
        self._serving.activity = ""

    def _load(self, model: Model, target: Target, prepare: Prepare) -> ServedModel:
        ranking = rank(
            model,
            target,
            trusted=self._serving.bundle.signed_by is not None,
            may_build=self._config.build_on_device,
            forced=self._config.variant,
        )
        for refusal in ranking.refused:
            logger.info("refused model=%s %s", model.name, _words(refusal))
        failed: tuple[Refusal, ...] = ()
        while True:
            choice = choice_from(model, ranking, failed)
            try:
                return self._opened(model, _candidate(ranking, choice), choice, prepare)
            except AttemptError as error:
                code, reason = error.refusal, str(error)
            refusal = Refusal(
                variant=choice.variant.id, means=choice.means, code=code, reason=reason
            )
            failed += (refusal,)
            logger.warning("refused model=%s %s", model.name, _words(refusal))

    def _opened(
        self, model: Model, candidate: Candidate, choice: Choice, prepare: Prepare
    ) -> ServedModel:
        variant = candidate.variant
        self._serving.activity = f"opening variant {variant.id!r} of model {model.name!r}"
        logger.info(
            "opening model=%s variant=%s means=%s why=%s",
            model.name, variant.id, candidate.means, choice.why,
        )  # fmt: skip
        try:
            open_session = prepare(model, candidate)
        except AttemptError:
            raise
        except EdgeError as error:
            raise AttemptError("open-failed", str(error)) from error
        finally:
            self.is_building = False
        statistics = ModelStatistics()
        worker = Worker(
            model.name,
            open_session,
            plan=Plan(
                model.batching if self._config.batching else None,
                inputs=model.inputs,
                outputs=model.outputs,
                profile=model.profile,
                max_rows=self._config.max_batch_rows,
            ),
            queue_size=self._config.queue_size,
            queue_bytes=self._config.queue_bytes,
            window_s=self._config.batch_window_ms / 1e3,
            note_run=statistics.record_run,
            stall_timeout_s=self._config.stall_timeout_s,
            clock=self._clock,
        )
        code = "open-failed"
        try:
            worker.start()
            code = "self-test-failed"
            self_test = self._self_test(worker, model, choice)
        except EdgeError as error:
            worker.stop(self._config.stall_timeout_s)
            if error.code == "backend-unavailable":
                code = error.code
            raise AttemptError(code, str(error)) from error
        return ServedModel(
            model=model,
            choice=choice,
            self_test=self_test,
            worker=worker,
            metrics=self._serving.metrics.for_model(model.name),
            latency=LatencyWindow(),
            statistics=statistics,
        )

    def _self_test(self, worker: Worker, model: Model, choice: Choice) -> SelfTest:
        bundle = self._serving.bundle

        def read(path: str) -> bytes:
            return read_capped(bundle.path(path), max_bytes=bundle.manifest.artifact(path).size)

        result = run_self_test(
            model,
            choice.variant.precision,
            infer=lambda feeds: worker.infer(feeds, deadline=None).outputs,
            read=read,
        )
        logger.info(
            "self-test passed model=%s variant=%s relative_error=%.2e tolerance=%.2e",
            model.name, choice.variant.id, result.relative_error, result.tolerance,
        )  # fmt: skip
        return result

    def _note_progress(self, phase: str, done: int, total: int) -> bool:
        self.is_building = True
        self._serving.activity = f"building an engine: {phase}, step {done} of {total}"
        return not self._stop.is_set()


def _candidate(ranking: Ranking, choice: Choice) -> Candidate:
    wanted = (choice.variant, choice.means)
    return next(c for c in ranking.candidates if (c.variant, c.means) == wanted)


def _words(refusal: Refusal) -> str:
    return f"variant={refusal.variant} code={refusal.code}: {refusal.reason}"
