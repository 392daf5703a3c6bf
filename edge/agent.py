"""The agent: verify a bundle, open its models, serve them, stop cleanly.

Three threads matter. The main thread verifies, then drives HTTP; the repository's thread opens and
self-tests the models, so that the agent is live while it is not ready; each model has a Worker.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from types import FrameType

from edge.admission import Admission
from edge.api import create_app
from edge.bundle import Bundle, open_bundle
from edge.capture.recorder import Recorder
from edge.chat_calls import ChatHandler
from edge.chat_preparing import PrepareDecoder
from edge.config import AgentConfig
from edge.errors import ConfigError
from edge.http_server import TURN_S, AppHandler, HttpServer, Loop
from edge.infer import InferHandler
from edge.inference import Inference
from edge.loading import Loader
from edge.notify import Notifier
from edge.preparing import Prepare
from edge.probes import ProbeChain, PsutilProbe
from edge.repository import Repository
from edge.serving import Serving
from edge.target import Target
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
        repository: Repository,
        clock: Callable[[], float],
    ) -> None:
        self.serving = serving
        self._config = config
        self._server = server
        self._notifier = notifier
        self._clock = clock
        self._stop = threading.Event()
        self._loader = loader
        self._repository = repository
        self._started: Future[None] | None = None
        self._on_ready: Callable[[], object] = lambda: None
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
        prepare_decoder: PrepareDecoder | None = None,
        admission: Callable[[Target], Admission] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> Agent:
        """Verify the bundle and listen; no model is opened yet.

        prepare, prepare_decoder, admission: see `Loader`.
        Raises TrustError or BundleError naming the file, ConfigError if the port cannot be had.
        """
        bundle = _verified_bundle(config)
        serving = Serving(
            bundle,
            started=clock(),
            allow_unsigned=config.allow_unsigned,
            ready_on_cpu=config.ready_on_cpu,
            wanted=_wanted(bundle, config.models),
        )
        loader = Loader(
            serving,
            config,
            prepare=prepare,
            prepare_decoder=prepare_decoder,
            admission=admission,
            clock=clock,
        )
        repository = Repository(
            serving,
            loader,
            reopen=lambda: _verified_bundle(config),
            drain_s=config.request_timeout_s + config.stall_timeout_s,
        )
        inference = Inference(
            serving,
            max_body_bytes=config.max_body_bytes,
            request_timeout_s=config.request_timeout_s,
            clock=clock,
        )
        loop = Loop()
        app = create_app(serving, repository, max_body_bytes=config.max_body_bytes, clock=clock)
        chat = ChatHandler(
            serving,
            loop,
            AppHandler(app, loop),
            max_body_bytes=config.max_body_bytes,
            timeout_s=config.chat_timeout_s,
            clock=clock,
        )
        handler = Recorder(
            InferHandler(inference, loop, chat),
            loop,
            is_allowed=config.allow_capture,
            input_names=lambda: {spec.name for m in serving.models for spec in m.inputs},
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
            loader=loader,
            repository=repository,
            clock=clock,
        )

    @property
    def url(self) -> str:
        """Where clients reach the agent."""
        return self._server.url

    def request_stop(self) -> None:
        """Make `run` finish what has begun and return; for signal handlers and other threads."""
        self._stop.set()
        self._repository.stop()
        self._server.wake()

    def run(self, on_ready: Callable[[], object] = lambda: None) -> None:
        """Serve until `request_stop`; raises the EdgeError that kept a model from opening.

        on_ready: called once, when the models that are served from the start are open.
        """
        self._on_ready = on_ready
        try:
            self._started = self._repository.start(self.serving.wanted, self._server.wake)
            while not self._stop.is_set():
                self._tick()
                self._server.turn(self._turn_s())
            self._shut_down()
        finally:
            self._repository.stop()
            self._server.close()
            for served in self.serving.served.values():
                served.runner.stop(_STOP_S)
            self._probe.close()

    def _tick(self) -> None:
        now = self._clock()
        if self.serving.phase == "starting" and self._started and self._started.done():
            self._started.result()
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
            if not any(m.runner.is_stalled(now) for m in self.serving.served.values()):
                self._notifier.watchdog()
            self._next_ping = now + interval_s

    def _turn_s(self) -> float:
        interval_s = self._notifier.watchdog_interval_s
        return TURN_S if interval_s is None else min(TURN_S, interval_s)

    def _finish_start(self) -> None:
        self.serving.phase = "serving"
        self._notifier.ready()
        degraded = [served.degradation for served in self.serving.served.values()]
        missing = [name for name in self.serving.wanted if name not in self.serving.served]
        for problem in (*filter(None, degraded), *map(self.serving.model_condition, missing)):
            logger.warning("degraded: %s", problem)
        note = ", on the CPU instead of a GPU" if any(degraded) else ""
        note += f", without {', '.join(missing)}" if missing else ""
        self._notifier.status(f"serving {', '.join(self.serving.served)} on {self.url}{note}")
        self._on_ready()
        logger.info("ready models=%s url=%s", ",".join(self.serving.served), self.url)

    def _shut_down(self) -> None:
        logger.info("stopping timeout_s=%g", self._config.shutdown_timeout_s)
        self.serving.phase = "stopping"
        self._notifier.stopping()
        deadline = self._clock() + self._config.shutdown_timeout_s
        if not self._server.drain(self._config.shutdown_timeout_s):
            logger.warning("stopped with unanswered requests; raise shutdown_timeout_s")
        self._repository.join(max(0.0, deadline - self._clock()))
        for name, served in self.serving.served.items():
            if not served.runner.stop(max(0.0, deadline - self._clock())):
                logger.warning("worker still busy at exit name=%s", name)
        logger.info("stopped")


def serve(config: AgentConfig, *, environ: Mapping[str, str] = os.environ) -> int:
    """Run the agent until SIGTERM or SIGINT and return its exit status.

    Raises the EdgeError that keeps it from serving.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with _on_stop_signal(sys.exit):  # while verifying there is nothing to finish
        agent = Agent.open(config, notifier=Notifier.from_environ(environ))
    with _on_stop_signal(agent.request_stop):
        agent.run(on_ready=_spare_collector)
    return 0


def _spare_collector() -> None:
    """Hide what the start has made from the garbage collector, and that is nearly everything.

    To look through it again and again kept requests waiting: the p99 of refusals was 50 to 140 ms.
    """
    gc.collect()
    gc.freeze()


def _verified_bundle(config: AgentConfig) -> Bundle:
    """Return the bundle as it is on disk now; engines are verified when they are opened."""
    keys = trusted_keys_in(config.trusted_keys)
    bundle = open_bundle(
        config.bundle, keys, allow_unsigned=config.allow_unsigned, defer_engines=True
    )
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
    return bundle


def _wanted(bundle: Bundle, names: str | None) -> tuple[str, ...]:
    """Return the models to open at the start; raises ConfigError for one that is not there."""
    known = tuple(model.name for model in bundle.manifest.models)
    if names is None:
        return known
    chosen = tuple(dict.fromkeys(name.strip() for name in names.split(",")))
    for name in chosen:
        if name not in known:
            raise ConfigError(f"models: the bundle has no {name!r}, only {', '.join(known)}")
    return chosen


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
