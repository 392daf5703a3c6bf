"""Opens a model: the best candidate that fits, opens, and passes its self-test."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import psutil

from edge.admission import Admission
from edge.batching import Plan
from edge.bundle import Bundle
from edge.chat.room import Room, room_for
from edge.chat_loading import open_chat
from edge.chat_preparing import DecoderPreparer, PrepareDecoder, decoder_spec
from edge.choice import Candidate, Choice, Ranking, Refusal, choice_from, rank
from edge.config import AgentConfig
from edge.drift.opening import keep_rules, watch_of
from edge.drift.watch import DriftRules
from edge.engine_process import AttemptError
from edge.errors import EdgeError
from edge.files import read_capped
from edge.latency import LatencyWindow
from edge.manifest import Model
from edge.matching import GPU_MEANS
from edge.places import Places
from edge.preparing import Prepare, Prepared, Preparer
from edge.replicas import Replicas
from edge.self_test import SelfTest, golden_inputs, run_self_test
from edge.served import Served, ServedChat, ServedModel
from edge.serving import Serving
from edge.spec import AnyArray, Feeds
from edge.target import Target, detect_target
from edge.text import Tokenizer
from edge.warm_up import warm_up
from edge.worker import Worker

SETTLE_S = 10.0  # for what a session prepares after its warm-up

logger = logging.getLogger(__name__)


class Loader:
    """Opens models, one at a time, in one thread.

    prepare, prepare_decoder: how a candidate is made ready, and one of a chat model; None is the
    real way. is_building: whether a build runs,
    which may take longer than any start.
    """

    def __init__(
        self,
        serving: Serving,
        config: AgentConfig,
        *,
        prepare: Prepare | None = None,
        prepare_decoder: PrepareDecoder | None = None,
        admission: Callable[[Target], Admission] | None = None,
        detect: Callable[[], Target] = detect_target,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.is_building = False
        self._serving = serving
        self._config = config
        self._clock = clock
        self._stop = threading.Event()
        self._detect = detect
        self._given = prepare
        self._given_decoders = prepare_decoder
        self._new_admission = admission or self._default_admission

    def detect(self) -> None:
        """Find out what this machine is; comes before everything else."""
        target = self._target = self._serving.target = self._detect()
        logger.info(
            "device name=%s gpus=%d sm=%s cuda=%s tensorrt=%s tensorrt_rtx=%s onnxruntime=%s",
            target.name, target.gpus, target.sm, target.cuda, target.tensorrt,
            target.tensorrt_rtx, target.onnxruntime,
        )  # fmt: skip
        self._admission = self._new_admission(target)
        self._prepare = (
            self._given
            or Preparer(self._config, target, progress=self._note_progress, stop=self._stop).prepare
        )
        self._prepare_decoder = (
            self._given_decoders
            or DecoderPreparer(
                self._config, target, progress=self._note_progress, stop=self._stop
            ).prepare
        )

    def stop(self) -> None:
        """End a child process that builds or tries an engine; its candidate is refused."""
        self._stop.set()

    def crowding(self, bundle: Bundle, model: Model) -> str | None:
        """Return why the best candidate does not fit beside all that is open, None if it does."""
        candidates = self._ranking(bundle, model).candidates
        if not candidates:
            return None
        if model.chat is None:
            return self._admission.problem(bundle.manifest, candidates[0])
        return self._room(bundle, candidates[0])[1]

    def open(self, bundle: Bundle, model: Model) -> Served:
        """Return the opened model; raises the EdgeError that keeps it from serving."""
        ranking = self._ranking(bundle, model)
        for refusal in ranking.refused:
            logger.info("refused model=%s %s", model.name, _words(refusal))
        failed: tuple[Refusal, ...] = ()
        while True:
            choice = choice_from(model, ranking, failed)
            try:
                return self._opened(bundle, model, _candidate(ranking, choice), choice)
            except AttemptError as error:
                code, reason = error.refusal, str(error)
            finally:
                self._serving.activity = ""
            refusal = Refusal(
                variant=choice.variant.id, means=choice.means, code=code, reason=reason
            )
            failed += (refusal,)
            logger.warning("refused model=%s %s", model.name, _words(refusal))

    def _ranking(self, bundle: Bundle, model: Model) -> Ranking:
        return rank(
            model,
            self._target,
            trusted=bundle.signed_by is not None,
            may_build=self._config.build_on_device,
            forced=self._config.variant,
            absent=bundle.absent,
        )

    def _opened(self, bundle: Bundle, model: Model, candidate: Candidate, choice: Choice) -> Served:
        variant = candidate.variant
        self._serving.activity = f"opening variant {variant.id!r} of model {model.name!r}"
        logger.info(
            "opening model=%s variant=%s means=%s why=%s",
            model.name, variant.id, candidate.means, choice.why,
        )  # fmt: skip
        opens = self._open_model if model.chat is None else self._open_chat
        return opens(bundle, model, candidate, choice)

    def _open_model(
        self, bundle: Bundle, model: Model, candidate: Candidate, choice: Choice
    ) -> ServedModel:
        self._admission.check(bundle.manifest, candidate)
        before = psutil.Process().memory_info().rss
        try:
            prepared = self._prepare(bundle, model, candidate)
        except AttemptError:
            raise
        except EdgeError as error:
            raise AttemptError("open-failed", str(error)) from error
        finally:
            self.is_building = False
        try:
            replicas = self._replicas(model, candidate, prepared)
        finally:
            prepared.close()
        try:
            self_test = self._tried(bundle, model, choice, replicas)
        except EdgeError as error:
            replicas.stop(self._config.stall_timeout_s)
            raise AttemptError("self-test-failed", str(error)) from error
        device_bytes = replicas.workers[0].memory_bytes
        memory_bytes = _grown(before) if device_bytes is None else device_bytes
        self._admission.note(bundle.manifest, candidate.variant, memory_bytes)
        statistics = self._serving.statistics_of(model.name)
        for worker in replicas.workers:
            worker.note_run = statistics.record_run
        tokenizer = _tokenizer(bundle, model)
        return ServedModel(
            model=model,
            bundle=bundle,
            choice=choice,
            self_test=self_test,
            worker=replicas,
            places=Places(model.name, self._config.queue_size + replicas.max_running_rows),
            memory_bytes=memory_bytes,
            tokenizer=tokenizer,
            drift=watch_of(
                bundle,
                model,
                tokenizer,
                DriftRules(
                    rows=self._config.drift_window,
                    seconds=self._config.drift_window_s,
                    level=self._config.drift_level,
                ),
                keep_rules(self._config),
                on_change=self._serving.on_drift,
            ),
            metrics=self._serving.metrics.for_model(model.name),
            latency=LatencyWindow(),
            statistics=statistics,
        )

    def _open_chat(
        self, bundle: Bundle, model: Model, candidate: Candidate, choice: Choice
    ) -> ServedChat:
        room, problem = self._room(bundle, candidate)
        if problem is not None:
            raise AttemptError("memory", problem)
        before = psutil.Process().memory_info().rss
        try:
            open_decoder = self._prepare_decoder(bundle, candidate)
        finally:
            self.is_building = False
        opened = open_chat(
            bundle,
            model,
            choice,
            room,
            config=self._config,
            open_decoder=open_decoder,
            clock=self._clock,
        )
        memory_bytes = _grown(before)
        self._admission.note(bundle.manifest, candidate.variant, memory_bytes)
        return ServedChat(
            model=model,
            bundle=bundle,
            choice=choice,
            self_test=opened.self_test,
            generator=opened.generator,
            talker=opened.talker,
            places=Places(model.name, self._config.queue_size + room.lanes),
            memory_bytes=memory_bytes,
            metrics=self._serving.metrics.for_model(model.name),
            latency=LatencyWindow(),
            statistics=self._serving.statistics_of(model.name),
        )

    def _room(self, bundle: Bundle, candidate: Candidate) -> tuple[Room, str | None]:
        def problem(cache_bytes: int) -> str | None:
            return self._admission.problem(bundle.manifest, candidate, cache_bytes=cache_bytes)

        return room_for(
            decoder_spec(candidate.variant),
            lanes=self._config.chat_lanes,
            context=self._config.chat_context,
            problem=problem,
        )

    def _replicas(self, model: Model, candidate: Candidate, prepared: Prepared) -> Replicas:
        """Open a worker on every GPU that is like the first, or one on the CPU."""
        count = max(1, self._target.gpus) if candidate.means in GPU_MEANS else 1
        workers: list[Worker] = []
        try:
            for device in range(count):
                worker = self._worker(model, prepared, device)
                workers.append(worker)
                worker.start()
        except EdgeError as error:
            for worker in workers:
                worker.stop(self._config.stall_timeout_s)
            known = error.code == "backend-unavailable"
            raise AttemptError(error.code if known else "open-failed", str(error)) from error
        return Replicas(workers, clock=self._clock)

    def _worker(self, model: Model, prepared: Prepared, device: int) -> Worker:
        return Worker(
            model.name,
            lambda: prepared.open(device),
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
            stall_timeout_s=self._config.stall_timeout_s,
            clock=self._clock,
        )

    def _tried(self, bundle: Bundle, model: Model, choice: Choice, replicas: Replicas) -> SelfTest:
        """Run the golden set on every worker, warm it up, and return the worst of the verdicts."""

        def read(path: str) -> bytes:
            return read_capped(bundle.path(path), max_bytes=bundle.manifest.artifact(path).size)

        results = []
        for worker in replicas.workers:
            infer = _alone(worker)
            results.append(run_self_test(model, choice.variant.precision, infer=infer, read=read))
            if self._config.warm_up:
                warm_up(model.profile, golden_inputs(model, read), infer, clock=self._clock)
                worker.settle(SETTLE_S)
        worst = max(results, key=lambda result: result.relative_error)
        logger.info(
            "self-test passed model=%s variant=%s workers=%d relative_error=%.2e tolerance=%.2e",
            model.name, choice.variant.id, len(results), worst.relative_error, worst.tolerance,
        )  # fmt: skip
        return worst

    def _default_admission(self, target: Target) -> Admission:
        return Admission(target, reserve_bytes=self._config.memory_reserve_bytes)

    def _note_progress(self, phase: str, done: int, total: int) -> bool:
        self.is_building = True
        self._serving.activity = f"building an engine: {phase}, step {done} of {total}"
        return not self._stop.is_set()


def _tokenizer(bundle: Bundle, model: Model) -> Tokenizer | None:
    """Return what reads the texts of a model; None, and a line why, without: tensors need none."""
    if model.text is None:
        return None
    artifact = bundle.manifest.artifact(model.text.tokenizer)
    content = read_capped(bundle.path(artifact.path), max_bytes=artifact.size)
    try:
        return Tokenizer.open(content, model.text)
    except EdgeError as error:
        logger.warning("no texts model=%s: %s", model.name, error)
        return None


def _grown(before: int) -> int:
    after: int = psutil.Process().memory_info().rss
    return max(0, after - before)


def _alone(worker: Worker) -> Callable[[Feeds], dict[str, AnyArray]]:
    return lambda feeds: worker.infer(feeds, deadline=None).outputs


def _candidate(ranking: Ranking, choice: Choice) -> Candidate:
    wanted = (choice.variant, choice.means)
    return next(c for c in ranking.candidates if (c.variant, c.means) == wanted)


def _words(refusal: Refusal) -> str:
    return f"variant={refusal.variant} code={refusal.code}: {refusal.reason}"
