"""Prometheus metrics of one agent, in a registry of their own."""

from __future__ import annotations

import bisect
import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from edge.alarms import Told
from edge.chat_metrics import ChatState, chat_metrics
from edge.drift.metrics import drift_metrics
from edge.drift.watch import DriftReport
from edge.latency import STAGES
from edge.machine_metrics import machine_metrics
from edge.manifest import Backend
from edge.probes.sample import Sample
from edge.slots.watching import SlotFacts
from edge.statistics import ModelStatistics
from edge.update.status import PassStatus, unix_s

CONTENT_TYPE = CONTENT_TYPE_LATEST
OUTCOME_OK = "ok"
# Dense where edge models live (2 to 100 ms), and wide enough to show a stall.
BUCKETS_S = (
    0.0005,
    0.001,
    0.002,
    0.003,
    0.005,
    0.0075,
    0.010,
    0.015,
    0.020,
    0.030,
    0.050,
    0.075,
    0.100,
    0.150,
    0.250,
    0.500,
    1.0,
    2.5,
    5.0,
    10.0,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelState:
    """What is true of a served model at the moment of a scrape."""

    model: str
    version: str
    variant: str
    backend: Backend
    on_gpu: bool
    queue_depth: int
    statistics: ModelStatistics
    drift: DriftReport | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What is true of the agent at the moment of a scrape."""

    bundle: str
    signed: bool
    models: tuple[ModelState, ...]
    chats: tuple[ChatState, ...] = ()
    slots: SlotFacts | None = None
    update: PassStatus | None = None
    sample: Sample
    alarms: tuple[Told, ...] = ()


class Metrics:
    """Counts requests and renders everything; `state` is asked once per scrape."""

    def __init__(self, state: Callable[[], State]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # the library leaves it untyped
        self._registry = CollectorRegistry()
        responses = Counter(
            "edge_http_responses",
            "HTTP answers by status code, whatever was asked for.",
            ("status",),
            registry=self._registry,
        )
        self._responses = functools.cache(lambda status: responses.labels(str(status)))
        self._models: dict[str, ModelMetrics] = {}
        self._registry.register(_RequestCollector(self._models))
        self._registry.register(_StateCollector(state))

    def record_response(self, status: int) -> None:
        """Count one HTTP answer."""
        self._responses(status).inc()

    def for_model(self, model: str) -> ModelMetrics:
        """Return the recorder of one model's requests; it goes on when the model is loaded anew."""
        return self._models.setdefault(model, ModelMetrics())

    def exposition(self) -> bytes:
        """Return the text format that Prometheus scrapes."""
        return generate_latest(self._registry)


class ModelMetrics:
    """Records the requests of one model. May be used from any thread.

    One lock for all that a request adds: the library's own counters take one each, which cost as
    much as reading the request did.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._outcomes: dict[str, int] = {OUTCOME_OK: 0}
        self._counts = {stage: [0] * (len(BUCKETS_S) + 1) for stage in STAGES}
        self._seconds = dict.fromkeys(STAGES, 0.0)

    def record_answer(self, *, queue_s: float, compute_s: float, total_s: float) -> None:
        """Count one answered request and its stages."""
        with self._lock:
            self._outcomes[OUTCOME_OK] += 1
            for stage, seconds in zip(STAGES, (queue_s, compute_s, total_s), strict=True):
                self._counts[stage][bisect.bisect_left(BUCKETS_S, seconds)] += 1
                self._seconds[stage] += seconds

    def record_error(self, code: str) -> None:
        """Count one request that ended with an error."""
        with self._lock:
            self._outcomes[code] = self._outcomes.get(code, 0) + 1

    def outcomes(self) -> dict[str, int]:
        """Return how many requests ended each way so far."""
        with self._lock:
            return dict(self._outcomes)

    def durations(self) -> dict[str, tuple[list[int], float]]:
        """Return, by stage, how many requests fell into each bucket, and their seconds."""
        with self._lock:
            return {stage: (list(self._counts[stage]), self._seconds[stage]) for stage in STAGES}


class _RequestCollector(Collector):
    """Renders what ModelMetrics have counted."""

    def __init__(self, models: Mapping[str, ModelMetrics]) -> None:
        self._models = models

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        durations = HistogramMetricFamily(
            "edge_inference_request_duration_seconds",
            "Time of an answered request: waiting, in the backend, and from parsing to encoding.",
            labels=("model", "stage"),
        )
        requests = CounterMetricFamily(
            "edge_inference_requests",
            "Inference requests by outcome: ok, or the code of the error.",
            labels=("model", "outcome"),
        )
        bounds = (*map(floatToGoString, BUCKETS_S), "+Inf")
        for model, recorder in tuple(self._models.items()):
            for stage, (counts, seconds) in recorder.durations().items():
                buckets = list(zip(bounds, itertools.accumulate(counts), strict=True))
                durations.add_metric([model, stage], buckets, seconds)
            for outcome, count in recorder.outcomes().items():
                requests.add_metric([model, outcome], count)
        yield durations
        yield requests


class _StateCollector(Collector):
    """Gauges that are read at the moment of a scrape; what cannot be told is left out."""

    def __init__(self, state: Callable[[], State]) -> None:
        self._state = state

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        state = self._state()
        depth = GaugeMetricFamily(
            "edge_queue_depth", "Requests that wait for a model.", labels=("model",)
        )
        info = GaugeMetricFamily(
            "edge_bundle_info",
            "The bundle, and the variant of each model that is served; always 1.",
            labels=("bundle", "model", "version", "variant", "backend", "signed"),
        )
        signed = "true" if state.signed else "false"
        for model in state.models:
            depth.add_metric([model.model], model.queue_depth)
            labels = [state.bundle, model.model, model.version, model.variant, model.backend]
            info.add_metric([*labels, signed], 1)
        yield depth
        yield info
        if state.slots is not None:
            slot = GaugeMetricFamily(
                "edge_slot_info",
                'The slot that is served, and its phase: "committed" or "trial"; always 1.',
                labels=("slot", "phase"),
            )
            slot.add_metric([state.slots.slot, state.slots.phase], 1)
            yield slot
        if state.update is not None:
            yield from _update_metrics(state.update)
        yield from drift_metrics({m.model: m.drift for m in state.models if m.drift is not None})
        yield from _triton_metrics(state.models)
        yield from chat_metrics(state.chats)
        uses_gpu = any(model.on_gpu for model in state.models)
        yield GaugeMetricFamily(
            "edge_gpu_backend_active", "1 if a model runs on a GPU.", value=int(uses_gpu)
        )
        yield from machine_metrics(state.sample)
        alarms = GaugeMetricFamily(
            "edge_alarm_active",
            "1 while an alarm is on, 0 while it is not and can be told; model is empty for the "
            "machine's.",
            labels=("alarm", "model"),
        )
        for told in state.alarms:
            alarms.add_metric([told.name, told.model or ""], int(told.alarm is not None))
        yield alarms


def _update_metrics(update: PassStatus) -> Iterable[Metric]:
    last = GaugeMetricFamily(
        "edge_update_info",
        'How the last pass of an update ended, and the code of its error, or ""; always 1.',
        labels=("verdict", "code"),
    )
    last.add_metric([update.verdict, update.code or ""], 1)
    yield last
    for name, about, at in (
        ("pass", "When the last pass of an update ended.", unix_s(update.at)),
        ("good", "When a pass last proved the channel to be current.", unix_s(update.good_at)),
    ):
        if at is not None:
            yield GaugeMetricFamily(f"edge_update_{name}_timestamp_seconds", about, value=at)


# Error codes as Triton's reasons; every other code is OTHER.
_REASON_FROM_CODE = {
    "queue-full": "REJECTED",
    "not-ready": "REJECTED",
    "deadline": "REJECTED",
    "cancelled": "CANCELED",
    "inference": "BACKEND",
}


def _triton_metrics(models: Iterable[ModelState]) -> Iterable[Metric]:
    """Yield the counters under the names that Triton's dashboards ask for.

    Of unknown type: as counters the library would add "_total" to names that have none.
    """
    metrics: dict[str, Metric] = {}

    def add(name: str, about: str, state: ModelState, value: float, **labels: str) -> None:
        metric = metrics.setdefault(name, Metric(name, about, "unknown"))
        labels = {"model": state.model, "version": state.version, **labels}
        metric.add_sample(name, labels, value)

    for state in models:
        counts = state.statistics
        success = counts.count("success")
        add("nv_inference_request_success", "Requests that were answered.", state, success)
        reasons = dict.fromkeys(("REJECTED", "CANCELED", "BACKEND", "OTHER"), 0)
        for code, count in counts.failures().items():
            reasons[_REASON_FROM_CODE.get(code, "OTHER")] += count
        for reason, count in reasons.items():
            about = "Requests that were not."
            add("nv_inference_request_failure", about, state, count, reason=reason)
        add("nv_inference_count", "Rows that were answered.", state, counts.inference_count)
        add("nv_inference_exec_count", "Runs of the engine.", state, counts.execution_count)
        pending = "nv_inference_pending_request_count"
        add(pending, "Requests that wait.", state, state.queue_depth)
        for stage, key in (
            ("request", "success"),
            ("queue", "queue"),
            ("compute_input", "compute_input"),
            ("compute_infer", "compute_infer"),
            ("compute_output", "compute_output"),
        ):
            about = "Microseconds of all answered requests in this stage."
            value = 1e6 * counts.seconds(key)
            add(f"nv_inference_{stage}_duration_us", about, state, value)
    return metrics.values()
