"""The agent: verify a bundle, open its models, serve them, stop cleanly.

Three threads matter. The main thread verifies, then drives HTTP; the loader thread opens and
self-tests the models, so that the agent is live while it is not ready; each model has a Worker.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType

from edge.api import create_app
from edge.bundle import Bundle, open_bundle
from edge.config import AgentConfig
from edge.errors import EdgeError, InferenceError
from edge.http_server import TURN_S, AppHandler, HttpServer, Loop
from edge.infer import Inference, InferHandler
from edge.loading import Loader
from edge.notify import Notifier
from edge.preparing import Prepare
from edge.probes import ProbeChain, PsutilProbe
from edge.recorder import Recorder
from edge.serving import Serving
from edge.trust import trusted_keys_in

SAMPLE_INTERVAL_S = 2.0
_STOP_S = 1.0
# The event loop and the workers pass requests to and fro; with Python's 5 ms, whoever is busy keeps
# the other waiting: p99 of 64 connections 85 ms instead of 57, and 30 % less throughput.
SWITCH_INTERVAL_S = 0.0005
# While an engine is built, systemd is asked for this much time, this often.
_EXTENSION_S = 120.0
_EXTEND_EVERY_S = 30.0

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
        loader: Loader,
        clock: Callable[[], float],
    ) -> None:
        self.serving = serving
        self._config = config
        self._server = server
        self._notifier = notifier
        self._clock = clock
        self._stop = threading.Event()
        self._loaded = threading.Event()
        self._failure: EdgeError | None = None
        self._loader = loader
        self._loading = threading.Thread(target=self._load_all, name="loader", daemon=True)
        self._probe = ProbeChain([PsutilProbe()], clock=clock)
        self._next_sample = clock()
        self._next_ping = clock()
        self._next_extension = clock()

    @classmethod
    def open(
        cls,
        config: AgentConfig,
        *,
        notifier: Notifier,
        prepare: Prepare | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> Agent:
        """Verify the bundle and listen; no model is opened yet.

        prepare: see `Loader`.
        Raises TrustError or BundleError naming the file, ConfigError if the port cannot be had.
        """
        keys = trusted_keys_in(config.trusted_keys)
        bundle = open_bundle(
            config.bundle, keys, allow_unsigned=config.allow_unsigned, defer_engines=True
        )
        _log_bundle(bundle, config)
        serving = Serving(
            bundle,
            started=clock(),
            allow_unsigned=config.allow_unsigned,
            ready_on_cpu=config.ready_on_cpu,
        )
        inference = Inference(
            serving,
            max_body_bytes=config.max_body_bytes,
            max_waiting=config.queue_size,
            request_timeout_s=config.request_timeout_s,
            clock=clock,
        )
        loop = Loop()
        app = AppHandler(create_app(inference, max_body_bytes=config.max_body_bytes), loop)
        handler = Recorder(
            InferHandler(inference, loop, app),
            loop,
            is_allowed=config.allow_capture,
            input_names=lambda: {spec.name for m in bundle.manifest.models for spec in m.inputs},
            max_body_bytes=config.max_body_bytes,
            count=serving.metrics.record_response,
            clock=clock,
        )
        server = HttpServer.open(
            handler,
            loop,
            host=config.host,
            port=config.port,
            max_body_bytes=config.max_body_bytes,
            max_per_client=config.max_per_client,
            max_connections_per_client=config.max_connections_per_client,
            on_refusal=serving.metrics.record_response,
            clock=clock,
        )
        logger.info("listening on %s", server.url)
        return cls(
            config,
            serving=serving,
            server=server,
            notifier=notifier,
            loader=Loader(serving, config, prepare=prepare, clock=clock),
            clock=clock,
        )

    @property
    def url(self) -> str:
        """Where clients reach the agent."""
        return self._server.url

    def request_stop(self) -> None:
        """Make `run` finish what has begun and return; for signal handlers and other threads."""
        self._stop.set()
        self._loader.stop()
        self._server.wake()

    def run(self) -> None:
        """Serve until `request_stop`; raises the EdgeError that kept a model from opening."""
        try:
            self._loading.start()
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
        if self._loader.is_building and now >= self._next_extension:
            self._notifier.extend_start(_EXTENSION_S)
            self._notifier.status(self.serving.activity)
            self._next_extension = now + _EXTEND_EVERY_S
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
        degraded = [served.degradation for served in self.serving.served.values()]
        for problem in filter(None, degraded):
            logger.warning("degraded: %s", problem)
        note = ", on the CPU instead of a GPU" if any(degraded) else ""
        self._notifier.status(f"serving {', '.join(self.serving.served)} on {self.url}{note}")
        logger.info("ready models=%s url=%s", ",".join(self.serving.served), self.url)

    def _shut_down(self) -> None:
        logger.info("stopping timeout_s=%g", self._config.shutdown_timeout_s)
        self.serving.phase = "stopping"
        self._notifier.stopping()
        deadline = self._clock() + self._config.shutdown_timeout_s
        if not self._server.drain(self._config.shutdown_timeout_s):
            logger.warning("stopped with unanswered requests; raise shutdown_timeout_s")
        self._loading.join(max(0.0, deadline - self._clock()))
        for name, served in self.serving.served.items():
            if not served.worker.stop(max(0.0, deadline - self._clock())):
                logger.warning("worker still busy at exit name=%s", name)
        logger.info("stopped")

    def _load_all(self) -> None:
        try:
            self._loader.load_all()
        except EdgeError as error:
            self._failure = error
        finally:
            self._loaded.set()
            self._server.wake()


def serve(config: AgentConfig, *, environ: Mapping[str, str] = os.environ) -> int:
    """Run the agent until SIGTERM or SIGINT and return its exit status.

    Raises the EdgeError that keeps it from serving.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with _on_stop_signal(sys.exit):  # while verifying there is nothing to finish
        agent = Agent.open(config, notifier=Notifier.from_environ(environ))
    with _on_stop_signal(agent.request_stop):
        agent.run()
    return 0


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
