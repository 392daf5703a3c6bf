"""The agent: verify a bundle, open its models, serve them, stop cleanly.

Three threads matter. The main thread verifies, then drives HTTP; the repository's thread opens and
self-tests the models, so that the agent is live while it is not ready; each model has a Worker.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

import edge
from edge.access import Access, search_domains
from edge.admission import Admission
from edge.alarm_watch import AlarmWatch, drifts_of
from edge.api import create_app
from edge.bundle import Bundle
from edge.capture.recorder import Recorder
from edge.chat_calls import ChatHandler
from edge.chat_preparing import PrepareDecoder
from edge.config import AgentConfig
from edge.drift.watching import DriftWatching
from edge.errors import ConfigError, EdgeError
from edge.history.history import History
from edge.history.recorder import HistoryRecorder
from edge.http_server import TURN_S, AppHandler, HttpServer, Loop
from edge.infer import InferHandler
from edge.inference import Inference
from edge.loading import Loader
from edge.notify import Notifier
from edge.preparing import Prepare
from edge.probes.sample import Sample
from edge.repository import Repository
from edge.request_energy import RequestEnergy
from edge.sampler import Sampler, machine_probe
from edge.serving import Serving
from edge.slots.opening import open_configured
from edge.slots.watching import SlotsWatch
from edge.target import Target
from edge.traces import Traces
from edge.update.status import read_status

_STOP_S = 1.0
LOOK_S = 1.0
# While an engine is built, systemd is asked for this much time, this often.
EXTENSION_S = 120.0
EXTEND_EVERY_S = 30.0

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
        watch: SlotsWatch | None,
        drift: DriftWatching,
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
        self._recorder = HistoryRecorder(serving)
        self._alarms = AlarmWatch(serving, drifts=partial(drifts_of, serving))
        self._energy = RequestEnergy(serving)
        self._sampler = Sampler(machine_probe(config), self._take_sample)
        self._drift = drift
        self._watch = watch
        self.is_replaced = False
        self._next_ping = clock()
        self._next_extension = clock()
        self._next_look = clock()

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
        watch = None if config.slots is None else SlotsWatch(config.slots)
        bundle = _verified_bundle(config)
        serving = Serving(
            bundle,
            started=clock(),
            allow_unsigned=config.allow_unsigned,
            ready_on_cpu=config.ready_on_cpu,
            wanted=_wanted(bundle, config.models),
            history=History.open(config.history),
            slots=(lambda: None) if watch is None else watch.facts,
            update=(lambda: None) if watch is None else partial(read_status, watch.root),
        )
        drift = DriftWatching(serving, config.drift_webhook)
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
        endpoint = config.otlp_endpoint
        traces = None if endpoint is None else Traces.open(endpoint, clock=clock)
        app = create_app(serving, repository, max_body_bytes=config.max_body_bytes, clock=clock)
        chat = ChatHandler(
            serving,
            loop,
            AppHandler(app, loop),
            max_body_bytes=config.max_body_bytes,
            timeout_s=config.chat_timeout_s,
            clock=clock,
            traces=traces,
        )
        handler = Recorder(
            InferHandler(inference, loop, chat, traces=traces),
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
            access=Access.of_machine(
                socket.gethostname(),
                (config.allowed_hosts or "").split(","),
                domains=search_domains(),
            ),
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
            watch=watch,
            drift=drift,
            clock=clock,
        )

    @property
    def url(self) -> str:
        """Where clients reach the agent."""
        return self._server.url

    def request_stop(self) -> None:
        """Make `run` finish what has begun and return; for signal handlers and other threads.

        Nobody takes the place of this process then, whatever the slots say.
        """
        self.is_replaced = False
        self._end()

    def _end(self) -> None:
        self._stop.set()
        self._repository.stop()
        self._server.wake()

    def run(self, on_ready: Callable[[], object] = lambda: None) -> None:
        """Serve until `request_stop`; raises the EdgeError that kept a model from opening.

        on_ready: called once, when the models that are served from the start are open.
        """
        self._on_ready = on_ready
        log = logging.getLogger(edge.__name__)
        log.addHandler(self.serving.log)
        self._sampler.start()
        self._drift.start()
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
            self._sampler.stop()
            self._drift.stop()
            self.serving.history.close()
            log.removeHandler(self.serving.log)

    def _tick(self) -> None:
        now = self._clock()
        if self.serving.phase == "starting" and self._started and self._started.done():
            self._finish_start(self._started)
        if self._watch is not None and now >= self._next_look:
            # Here, and not where the machine is read: a driver that hangs must not hold it up.
            self._next_look = now + LOOK_S
            if self._watch.has_changed():
                logger.info("the slots serve another bundle now: this process makes way")
                self.is_replaced = True
                self._end()
        if self._loader.is_building and now >= self._next_extension:
            self._notifier.extend_start(EXTENSION_S)
            self._notifier.status(self.serving.activity)
            self._next_extension = now + EXTEND_EVERY_S
        interval_s = self._notifier.watchdog_interval_s
        if interval_s is not None and now >= self._next_ping:
            # A hung backend call must reach systemd: no ping while one lasts too long.
            if not any(m.runner.is_stalled(now) for m in self.serving.served.values()):
                self._notifier.watchdog()
            self._next_ping = now + interval_s

    def _take_sample(self, sample: Sample) -> None:
        self.serving.sample = sample
        for take in (self._alarms.take, self._energy.take, self._recorder.take):
            take(sample)

    def _turn_s(self) -> float:
        interval_s = self._notifier.watchdog_interval_s
        return TURN_S if interval_s is None else min(TURN_S, interval_s)

    def _finish_start(self, started: Future[None]) -> None:
        try:
            started.result()
        except EdgeError as error:
            # The gate sees it at once. Without one, the service manager's patience ends the start.
            if self._watch is None or not self._watch.on_trial:
                raise
            logger.error("the bundle on trial cannot be served: %s", error)
            self.serving.activity, self.serving.phase = str(error), "failed"
            return
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


def _verified_bundle(config: AgentConfig) -> Bundle:
    """Return the bundle as it is on disk now; engines are verified when they are opened."""
    bundle = open_configured(config, defer_engines=True)
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
