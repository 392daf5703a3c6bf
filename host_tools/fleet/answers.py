"""What is read of a device's /telemetry: only what is used, and nothing of it is trusted.

A field that is missing, as in an older agent's report, is "cannot tell"; one that is unknown, as in
a newer one's, is left aside; one of another kind makes the whole report one that lies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

import msgspec

from host_tools.terminal import plain

MAX_LISTED = 16

_Measure = Annotated[float, msgspec.Meta(ge=0.0, le=1e15)]
_Percent = Annotated[float, msgspec.Meta(ge=0.0, le=100.0)]
_Celsius = Annotated[float, msgspec.Meta(ge=-273.15, le=1e4)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Item = TypeVar("_Item")


class _Percentiles(msgspec.Struct):
    p50_ms: _Measure | None = None
    p95_ms: _Measure | None = None


class _Latency(msgspec.Struct):
    stages: dict[str, _Percentiles] = {}


class _Worker(msgspec.Struct):
    ready: bool | None = None


class _Drift(msgspec.Struct):
    state: str | None = None


class _Model(msgspec.Struct):
    name: str = "?"
    variant: str | None = None
    degradation: str | None = None
    ready: bool | None = None
    latency: _Latency = msgspec.field(default_factory=_Latency)
    requests: dict[str, _Count] = {}
    workers: tuple[_Worker, ...] = ()
    drift: _Drift | None = None


class _Bundle(msgspec.Struct):
    name: str = "?"
    version: str = "?"


class _Gpu(msgspec.Struct):
    utilization_percent: _Percent | None = None
    temperature_celsius: _Celsius | None = None
    power_watts: _Measure | None = None
    energy_joules: _Measure | None = None
    throttle_reasons: tuple[str, ...] | None = None


class _Machine(msgspec.Struct):
    power_watts: _Measure | None = None
    energy_joules: _Measure | None = None
    gpus: tuple[_Gpu, ...] = ()


class _Alarm(msgspec.Struct):
    name: str = "?"
    model: str | None = None
    detail: str = ""


class _Slots(msgspec.Struct):
    phase: str | None = None


class Report(msgspec.Struct):
    """A report as it came."""

    agent_version: str | None = None
    uptime_s: _Measure | None = None
    phase: str | None = None
    activity: str | None = None
    ready: bool | None = None
    condition: str | None = None
    bundle: _Bundle | None = None
    slots: _Slots | None = None
    models: tuple[_Model, ...] = ()
    machine: _Machine = msgspec.field(default_factory=_Machine)
    alarms: tuple[_Alarm, ...] = ()


class UnreadableError(Exception):
    """An answer is no report of an agent; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a report tells of a device; None is "cannot tell".

    troubles: in words, why the device is not all well although it serves. alarms: names, with the
    model they are about. drifted, variants: models. p50_ms, p95_ms: of the slowest model.
    requests: answered since the agent began. gpu_percent: mean over GPUs; hottest_celsius: the
    highest. power_watts, energy_joules: of the module, or of all GPUs. throttled: why clocks are
    held down now, () if they are not.
    """

    agent: str | None = None
    bundle: str | None = None
    is_on_trial: bool | None = None
    uptime_s: float | None = None
    troubles: tuple[str, ...] = ()
    alarms: tuple[str, ...] = ()
    drifted: tuple[str, ...] = ()
    variants: dict[str, str] = field(default_factory=dict)
    p50_ms: float | None = None
    p95_ms: float | None = None
    requests: int | None = None
    gpu_percent: float | None = None
    hottest_celsius: float | None = None
    power_watts: float | None = None
    energy_joules: float | None = None
    throttled: tuple[str, ...] | None = None


_REPORT = msgspec.json.Decoder(Report)


def report_from_body(body: bytes) -> Report:
    """Return what a body of JSON reports; raises UnreadableError."""
    try:
        report = _REPORT.decode(body)
    except msgspec.ValidationError as error:
        raise UnreadableError(f"its report is not what an agent says: {error}") from error
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise UnreadableError(f"its report is not JSON: {error}") from error
    if report.ready is None and report.agent_version is None:
        raise UnreadableError("its answer is JSON, but no report of an agent")
    return report


def facts_from(report: Report) -> Facts:
    """Return what is kept of a report; pure."""
    gpus, machine = report.machine.gpus, report.machine
    totals = [model.latency.stages.get("total", _Percentiles()) for model in report.models]
    bundle = report.bundle
    drifted = [m.name for m in report.models if m.drift is not None and m.drift.state == "drifted"]
    reasons = [gpu.throttle_reasons for gpu in gpus if gpu.throttle_reasons is not None]
    return Facts(
        agent=_plain_or_none(report.agent_version),
        bundle=None if bundle is None else plain(f"{bundle.name} {bundle.version}"),
        is_on_trial=None if report.slots is None else report.slots.phase == "trial",
        uptime_s=report.uptime_s,
        troubles=_plain_list(_troubles(report)),
        alarms=_plain_list(_about(alarm.name, alarm.model) for alarm in report.alarms),
        drifted=_plain_list(drifted),
        variants={
            plain(model.name): plain(model.variant)
            for model in report.models[:MAX_LISTED]
            if model.variant is not None
        },
        p50_ms=_of(max, (stage.p50_ms for stage in totals)),
        p95_ms=_of(max, (stage.p95_ms for stage in totals)),
        requests=_answered(report.models),
        gpu_percent=_of(_mean, (gpu.utilization_percent for gpu in gpus)),
        hottest_celsius=_of(max, (gpu.temperature_celsius for gpu in gpus)),
        power_watts=_first(machine.power_watts, _of(sum, (gpu.power_watts for gpu in gpus))),
        energy_joules=_first(machine.energy_joules, _of(sum, (gpu.energy_joules for gpu in gpus))),
        throttled=_plain_list(dict.fromkeys(r for rs in reasons for r in rs)) if reasons else None,
    )


def _troubles(report: Report) -> Iterable[str]:
    for alarm in report.alarms:
        about = _about(alarm.name, alarm.model)
        yield f"{about}: {alarm.detail}" if alarm.detail else about
    told = {(alarm.name, alarm.model) for alarm in report.alarms}
    for model in report.models:
        is_drifted = model.drift is not None and model.drift.state == "drifted"
        if is_drifted and ("drift", model.name) not in told:
            yield f"drift of {model.name}: its inputs or outputs are not what they were"
        if model.degradation is not None:
            yield f"{model.name}: {model.degradation}"
        down = sum(worker.ready is False for worker in model.workers)
        if down:
            yield f"{model.name}: {down} of {len(model.workers)} workers are not ready"
        elif model.ready is False:
            yield f"{model.name} is not ready"


def _about(name: str, model: str | None) -> str:
    return name if model is None else f"{name} of {model}"


def _answered(models: tuple[_Model, ...]) -> int | None:
    counts = [model.requests.get("ok", 0) for model in models]
    return min(sum(counts), 2**63 - 1) if counts else None


def _plain_list(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(plain(text) for text, _ in zip(texts, range(MAX_LISTED), strict=False))


def _plain_or_none(text: str | None) -> str | None:
    return None if text is None else plain(text)


def _first(one: float | None, other: float | None) -> float | None:
    return other if one is None else one


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _of(what: Callable[[list[float]], float], values: Iterable[float | None]) -> float | None:
    """Return what of the values that are known; None if none is."""
    known = [value for value in values if value is not None]
    return what(known) if known else None
