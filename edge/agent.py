"""The agent: verify a bundle, open its models, serve them, stop cleanly.

Three threads matter. The main thread verifies, then drives HTTP; the loader thread opens and
self-tests the models, so that the agent is live while it is not ready; each model has a Worker.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType

from edge import __version__
from edge.api import create_app
from edge.bundle import Bundle, open_bundle
from edge.choice import Choice, Refusal, choose
from edge.config import AgentConfig
from edge.errors import EdgeError, InferenceError
from edge.files import read_capped
from edge.latency import LatencyWindow
from edge.manifest import Backend, Model
from edge.notify import Notifier
from edge.ort_session import OrtSession
from edge.probes import ProbeChain, PsutilProbe
from edge.self_test import SelfTest, run_self_test
from edge.serving import ServedModel, Serving
from edge.session import Session
from edge.trust import trusted_keys_in
from edge.worker import Worker
from edge.wsgi import TURN_S, HttpServer

SAMPLE_INTERVAL_S = 2.0
# A request holds a thread until it is answered; health, metrics and refusals need one as well.
SPARE_HTTP_THREADS = 4
_STOP_S = 1.0

OpenSession = Callable[[Bundle, Model, Choice, AgentConfig], Session]

logger = logging.getLogger(__name__)


class Agent:
    """One bundle in service; make it with `open`, then `run` it in the main thread."""

    def __init__(
        self,
        config: AgentConfig,
        *,
        serving: Serving,
        server: HttpServer,
        notifier: Notifier,
        open_session: OpenSession,
        clock: Callable[[], float],
    ) -> None:
        self.serving = serving
        self._config = config
        self._server = server
        self._notifier = notifier
        self._open_session = open_session
        self._clock = clock
        self._stop = threading.Event()
        self._loaded = threading.Event()
        self._has_loaded = threading.Event()
        self._failure: EdgeError | None = None
        self._loader = threading.Thread(target=self._load_all, name="loader", daemon=True)
        self._probe = ProbeChain([PsutilProbe()], clock=clock)
        self._next_sample = clock()
        self._next_ping = clock()

    @classmethod
    def open(
        cls,
        config: AgentConfig,
        *,
        notifier: Notifier,
        open_session: OpenSession | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> Agent:
        """Verify the bundle and listen; no model is opened yet.

        Raises TrustError or BundleError naming the file, ConfigError if the port cannot be had.
        """
        keys = trusted_keys_in(config.trusted_keys)
        bundle = open_bundle(config.bundle, keys, allow_unsigned=config.allow_unsigned)
        _log_bundle(bundle, config)
        serving = Serving(bundle, started=clock(), allow_unsigned=config.allow_unsigned)
        max_requests = config.queue_size + 1  # one runs
        app = create_app(
            serving,
            max_body_bytes=config.max_body_bytes,
            max_requests=max_requests,
            request_timeout_s=config.request_timeout_s,
            clock=clock,
        )
        server = HttpServer.open(
            app,
            host=config.host,
            port=config.port,
            threads=max_requests + SPARE_HTTP_THREADS,
            max_body_bytes=config.max_body_bytes,
            on_refusal=serving.metrics.record_response,
            clock=clock,
        )
        logger.info("listening on %s", server.url)
        return cls(
            config,
            serving=serving,
            server=server,
            notifier=notifier,
            open_session=open_session or open_backend_session,
            clock=clock,
        )

    @property
    def url(self) -> str:
        """Where clients reach the agent."""
        return self._server.url

    def request_stop(self) -> None:
        """Make `run` finish what has begun and return; for signal handlers and other threads."""
        self._stop.set()
        self._server.wake()

    def run(self) -> None:
        """Serve until `request_stop`; raises the EdgeError that kept a model from opening."""
        try:
            self._loader.start()
            while not self._stop.is_set():
                self._tick()
                self._server.turn(self._turn_s())
            self._shut_down()
        finally:
            self._server.close()
            for served in self.serving.served.values():
                served.worker.stop(_STOP_S)
            self._probe.close()

    def _tick(self) -> None:
        now = self._clock()
        if self.serving.phase == "starting" and self._loaded.is_set():
            self._finish_start()
        if now >= self._next_sample:
            self.serving.sample = self._probe.read()
            self._next_sample = now + SAMPLE_INTERVAL_S
        interval_s = self._notifier.watchdog_interval_s
        if interval_s is not None and now >= self._next_ping:
            # A hung backend call must reach systemd: no ping while one lasts too long.
            if not any(m.worker.is_stalled(now) for m in self.serving.served.values()):
                self._notifier.watchdog()
            self._next_ping = now + interval_s

    def _turn_s(self) -> float:
        interval_s = self._notifier.watchdog_interval_s
        return TURN_S if interval_s is None else min(TURN_S, interval_s)

    def _finish_start(self) -> None:
        if self._failure is not None:
            raise self._failure
        if len(self.serving.served) != len(self.serving.bundle.manifest.models):
            raise InferenceError("the loader thread died; its traceback is in the log above")
        self.serving.phase = "serving"
        self._notifier.ready()
        self._notifier.status(f"serving {', '.join(self.serving.served)} on {self.url}")
        logger.info("ready models=%s url=%s", ",".join(self.serving.served), self.url)

    def _shut_down(self) -> None:
        logger.info("stopping timeout_s=%g", self._config.shutdown_timeout_s)
        self.serving.phase = "stopping"
        self._notifier.stopping()
        deadline = self._clock() + self._config.shutdown_timeout_s
        if not self._server.drain(self._config.shutdown_timeout_s):
            logger.warning("stopped with unanswered requests; raise shutdown_timeout_s")
        self._loader.join(max(0.0, deadline - self._clock()))
        for name, served in self.serving.served.items():
            if not served.worker.stop(max(0.0, deadline - self._clock())):
                logger.warning("worker still busy at exit name=%s", name)
        logger.info("stopped")

    def _load_all(self) -> None:
        try:
            for model in self.serving.bundle.manifest.models:
                served = self._load(model)
                self.serving.served = {**self.serving.served, model.name: served}
        except EdgeError as error:
            self._failure = error
        finally:
            self._loaded.set()
            self._server.wake()

    def _load(self, model: Model) -> ServedModel:
        """Open variants in order of choice until one passes the self-test."""
        failed: tuple[Refusal, ...] = ()
        while True:
            choice = choose(
                model, available=backend_problem, forced=self._config.variant, failed=failed
            )
            variant = choice.variant
            logger.info("opening model=%s variant=%s why=%s", model.name, variant.id, choice.why)
            worker = self._worker(model, choice)
            code = "open-failed"
            try:
                worker.start()
                code = "self-test-failed"
                self_test = self._self_test(worker, model, choice)
            except EdgeError as error:
                worker.stop(self._config.stall_timeout_s)
                failed += (Refusal(variant=variant.id, code=code, reason=str(error)),)
                logger.warning(
                    "refused model=%s variant=%s code=%s: %s", model.name, variant.id, code, error
                )
                continue
            return ServedModel(
                model=model,
                choice=choice,
                self_test=self_test,
                worker=worker,
                metrics=self.serving.metrics.for_model(model.name),
                latency=LatencyWindow(),
            )

    def _worker(self, model: Model, choice: Choice) -> Worker:
        return Worker(
            model.name,
            lambda: self._open_session(self.serving.bundle, model, choice, self._config),
            queue_size=self._config.queue_size,
            stall_timeout_s=self._config.stall_timeout_s,
            clock=self._clock,
        )

    def _self_test(self, worker: Worker, model: Model, choice: Choice) -> SelfTest:
        bundle = self.serving.bundle

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
            model.name,
            choice.variant.id,
            result.relative_error,
            result.tolerance,
        )
        return result


def serve(config: AgentConfig, *, environ: Mapping[str, str] = os.environ) -> int:
    """Run the agent until SIGTERM or SIGINT and return its exit status.

    Raises the EdgeError that keeps it from serving.
    """
    with _on_stop_signal(sys.exit):  # while verifying there is nothing to finish
        agent = Agent.open(config, notifier=Notifier.from_environ(environ))
    with _on_stop_signal(agent.request_stop):
        agent.run()
    return 0


def backend_problem(backend: Backend) -> str | None:
    """Return why a backend cannot be used here, or None if it can."""
    if backend != "ort":
        return (
            f"edge-kit {__version__} does not open {backend} variants; install a version that "
            "does, or serve an ort variant"
        )
    if importlib.util.find_spec("onnxruntime") is None:
        return "onnxruntime is not installed; pip install 'edge-kit[ort]'"
    return None


def open_backend_session(
    bundle: Bundle, model: Model, choice: Choice, config: AgentConfig
) -> Session:
    """Open the chosen variant; runs in the thread that will own the session."""
    return OrtSession.open(
        bundle.path(choice.variant.files[0]),
        inputs=model.inputs,
        outputs=model.outputs,
        profile=model.profile,
        intra_op_threads=config.intra_op_threads,
    )


def _log_bundle(bundle: Bundle, config: AgentConfig) -> None:
    signer = bundle.signed_by
    logger.info(
        "bundle verified name=%s version=%s files=%d signed_by=%s",
        bundle.manifest.name,
        bundle.manifest.version,
        len(bundle.manifest.artifacts),
        "unsigned" if signer is None else f"{signer.keyid[:12]} ({signer.name})",
    )
    if config.allow_unsigned:
        logger.warning("--allow-unsigned is set: anyone who can write a bundle can run its models")


@contextlib.contextmanager
def _on_stop_signal(stop: Callable[[], object]) -> Iterator[None]:
    def handle(number: int, frame: FrameType | None) -> None:
        stop()

    before = {kind: signal.signal(kind, handle) for kind in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
