"""The report of one agent: what it serves and why, how fast, and how the machine is.

It only reads: no failure here can make the agent unready.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Literal

from edge import __version__
from edge.alarms import Alarm, alarms_of
from edge.chat.counters import Histogram
from edge.chat.generator import Generator
from edge.choice import Refusal
from edge.drift.watch import DriftReport
from edge.latency import LatencySummary
from edge.manifest import Backend, Model, Precision, bytes_from_manifest
from edge.matching import Means
from edge.probes.sample import Sample
from edge.self_test import SelfTest
from edge.served import Served, ServedChat, ServedModel
from edge.serving import Phase, Serving
from edge.slots.watching import SlotFacts
from edge.target import Target
from edge.update.status import PassStatus

UNSIGNED = "unsigned"
Takes = Literal["image", "text", "chat", "tensors"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """The trusted key that signed the bundle: its id, and the file it came from."""

    keyid: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleReport:
    """The bundle in service; signed_by is "unsigned" if it was accepted without a trusted key."""

    name: str
    version: str
    manifest_sha256: str
    signed_by: Signer | str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """One thread that runs a model. load: requests that wait for it or run."""

    ready: bool
    consecutive_failures: int
    load: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatReport:
    """What a chat model does now, and has done since it was opened.

    context: tokens that question and answer may have together. cache_bytes: what the cache takes
    when all lanes are full. Shares are 0 to 1; means are over all answers, None without any.
    """

    lanes: int
    running: int
    waiting: int
    context: int
    cache_bytes: int
    cache_use: float
    prompt_tokens: int
    reused_tokens: int
    prefix_hits: int
    generated_tokens: int
    ended: dict[str, int]
    tokens_per_s: float | None
    first_token_ms: float | None
    between_tokens_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReport:
    """One model: the variant in service and why, the others and why not, and its requests.

    bundle_version: of the bundle that it was loaded from. degradation: what the bundle promised and
    this device does not keep, in words. workers: one for each GPU, or one on the CPU. memory_bytes:
    what opening it took on each. run_rows: how many runs of the engine had so many rows. chat: of a
    chat model. takes: how people ask it: "image" and "text" at /predict, "chat" at /chat. drift:
    None where the bundle holds no reference.
    """

    name: str
    version: str
    bundle_version: str
    variant: str
    backend: Backend
    precision: Precision
    means: Means
    why: str
    degradation: str | None
    refused: tuple[Refusal, ...]
    self_test: SelfTest
    ready: bool
    latency: LatencySummary
    requests: dict[str, int]
    queue_depth: int
    workers: tuple[WorkerReport, ...]
    memory_bytes: int | None
    run_rows: dict[int, int] = field(default_factory=dict)
    chat: ChatReport | None = None
    takes: Takes = "tensors"
    drift: DriftReport | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The content of /telemetry.

    activity: what a starting agent does now. condition: why it is not ready, None while it is.
    slots: what slot is served, None for a bundle that lies in no slot. update: how the last pass of
    an update ended, None for a device that follows no channel.
    alarms: those that are on. joules_per_request: energy of the module, or of all GPUs, by requests
    answered in the last minute; None without either.
    """

    agent_version: str
    uptime_s: float
    phase: Phase
    activity: str
    ready: bool
    condition: str | None
    allow_unsigned: bool
    target: Target | None
    bundle: BundleReport
    slots: SlotFacts | None
    update: PassStatus | None
    models: tuple[ModelReport, ...]
    machine: Sample
    joules_per_request: float | None
    alarms: tuple[Alarm, ...]


def report_from_serving(serving: Serving, *, now: float) -> Report:
    """Return the report; now is on the clock that gave `serving.started`."""
    manifest, signer = serving.bundle.manifest, serving.bundle.signed_by
    return Report(
        agent_version=__version__,
        uptime_s=round(now - serving.started, 3),
        phase=serving.phase,
        activity=serving.activity,
        ready=serving.is_ready,
        condition=None if serving.is_ready else serving.condition,
        allow_unsigned=serving.allow_unsigned,
        target=serving.target,
        bundle=BundleReport(
            name=manifest.name,
            version=manifest.version,
            manifest_sha256=hashlib.sha256(bytes_from_manifest(manifest)).hexdigest(),
            signed_by=UNSIGNED if signer is None else Signer(keyid=signer.keyid, name=signer.name),
        ),
        slots=serving.slots(),
        update=serving.update(),
        models=tuple(_model_report(served) for served in serving.served.values()),
        machine=serving.sample,
        joules_per_request=serving.joules_per_request,
        alarms=tuple(alarms_of(serving.alarms)),
    )


def _model_report(served: Served) -> ModelReport:
    variant = served.choice.variant
    return ModelReport(
        name=served.model.name,
        version=served.model.version,
        bundle_version=served.bundle.manifest.version,
        variant=variant.id,
        backend=variant.backend,
        precision=variant.precision,
        means=served.choice.means,
        why=served.choice.why,
        degradation=served.degradation,
        refused=served.choice.refused,
        self_test=served.self_test,
        ready=served.runner.is_ready,
        latency=served.latency.summary(),
        requests=served.metrics.outcomes(),
        queue_depth=served.runner.queue_depth,
        workers=_workers(served),
        memory_bytes=served.memory_bytes,
        run_rows=served.statistics.run_rows(),
        chat=_chat_report(served.generator) if isinstance(served, ServedChat) else None,
        takes=_takes(served.model),
        drift=None if served.drift is None else served.drift.report,
    )


def _takes(model: Model) -> Takes:
    if model.chat is not None:
        return "chat"
    if model.text is not None:
        return "text"
    return "tensors" if model.image is None else "image"


def _workers(served: Served) -> tuple[WorkerReport, ...]:
    if isinstance(served, ServedModel):
        return tuple(
            WorkerReport(
                ready=worker.is_ready,
                consecutive_failures=worker.consecutive_failures,
                load=worker.load,
            )
            for worker in served.worker.workers
        )
    if isinstance(served, ServedChat):
        generator = served.generator
        load = generator.waiting + generator.running
        return (
            WorkerReport(
                ready=generator.is_ready, consecutive_failures=generator.failures, load=load
            ),
        )
    return ()


def _chat_report(generator: Generator) -> ChatReport:
    counters, spec = generator.counters, generator.spec
    decoded_s = counters.decode_s
    return ChatReport(
        lanes=generator.lanes,
        running=generator.running,
        waiting=generator.waiting,
        context=spec.context,
        cache_bytes=generator.lanes * spec.context * spec.position_bytes,
        cache_use=round(generator.cache_use, 4),
        prompt_tokens=counters.prompt_tokens,
        reused_tokens=counters.reused_tokens,
        prefix_hits=counters.prefix_hits,
        generated_tokens=counters.generated_tokens,
        ended={str(reason): count for reason, count in counters.ended.items()},
        tokens_per_s=round(counters.generated_tokens / decoded_s, 2) if decoded_s else None,
        first_token_ms=_mean_ms(counters.first_token_s),
        between_tokens_ms=_mean_ms(counters.between_tokens_s),
    )


def _mean_ms(times: Histogram) -> float | None:
    return round(1e3 * times.sum_s / times.count, 3) if times.count else None
