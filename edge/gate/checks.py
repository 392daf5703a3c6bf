"""From what was seen to checks that pass or fail: pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from edge.capture.answers import Closeness
from edge.capture.replay_report import Report as ReplayReport
from edge.gate.limits import FEW_ERRORS, FEW_RECLASSIFIED, SLACK_BYTES, SLACK_MS, Limits
from edge.gate.questions import Answers
from edge.gate.report import Check
from edge.gate.seen import Seen
from edge.manifest import Manifest, Model, Variant
from edge.matching import GPU_MEANS


def backend_checks(seen: Seen) -> Iterator[Check]:
    """Yield a check per model: does it run where its bundle promised."""
    for model in seen.models:
        yield Check(
            name=f"{model.name} backend",
            passed=model.ready and model.degradation is None,
            measured=f"{model.variant} by {model.means}",
            limit="what the bundle promises",
            reason=model.degradation or ("" if model.ready else "it is not ready"),
        )


def seems_idle(seen: Seen, load_percent: float | None) -> bool:
    """Whether a model says that it runs on the GPU and nothing shows it, though something could."""
    if not any(model.means in GPU_MEANS for model in seen.models):
        return False
    held = seen.gpu_memory_bytes
    return held == 0 or (held is None and load_percent == 0)


def gpu_checks(seen: Seen, load_percent: float | None) -> Iterator[Check]:
    """Yield a check per model that says it runs on the GPU: does anything else say so.

    load_percent: the most that was seen while the models were asked; None if it cannot be told, or
    was not needed. What the agent holds on its GPUs decides where that is told by process. Else an
    idle GPU convicts ONNX Runtime, which goes on with the CPU; an engine has no other place to
    run, and short runs can be missed.
    """
    for model in seen.models:
        if model.means not in GPU_MEANS:
            continue
        held, reason, limit = seen.gpu_memory_bytes, "", "more than nothing"
        is_engine = model.means != "ort-cuda" and bool(model.memory_bytes)
        if held is not None:
            measured = f"{_megabytes(held)} on the GPU"
            reason = "" if held else "it says that it runs on the GPU and holds no memory"
        elif load_percent:
            measured = f"a GPU at {load_percent:g} % while it was asked"
        elif is_engine:
            measured = f"an engine that holds {_megabytes(model.memory_bytes or 0)}"
        elif load_percent is not None:
            measured = "GPUs at 0 % while it was asked"
            reason = "it says that it runs on the GPU, which did nothing while it was asked"
        else:
            measured = "cannot be told: the device tells neither memory by process nor load"
            limit = "none"
        yield Check(
            name=f"{model.name} GPU",
            passed=not reason,
            measured=measured,
            limit=limit,
            reason=reason,
        )


def answer_checks(answers: Sequence[Answers]) -> Iterator[Check]:
    """Yield a check per model: are its answers to the golden questions right."""
    for one in answers:
        if one.error is None or one.tolerance is None:
            measured, limit = f"{one.asked} answers", "an answer each time"
        else:
            measured, limit = f"relative error {one.error:.2e}", f"{one.tolerance:.2e}"
        yield Check(
            name=f"{one.model} golden answers",
            passed=one.is_right,
            measured=measured,
            limit=limit,
            reason=one.problem or "",
        )


def latency_checks(
    before: Mapping[str, Answers],
    now: Sequence[Answers],
    manifest: Manifest,
    variants: Mapping[str, str],
    limits: Limits,
) -> Iterator[Check]:
    """Yield a check per model: p95 against the bundle before, and against what was recorded.

    Small losses of many releases pass the first and add up; the second does not move with them. It
    counts where the bundle before kept to it, or there is none: a device on which that one did not
    is none that the figures speak of.
    """
    for one in now:
        then = before.get(one.model)
        then_ms = then.p95_ms if then is not None and math.isfinite(then.p95_ms) else None
        recorded = _recorded_ms(manifest, one.model, variants.get(one.model))
        allowed, limit = math.inf, "nothing to compare with"
        if then_ms is not None:
            allowed = max(limits.p95_factor * then_ms, then_ms + SLACK_MS)
            limit = f"{allowed:.2f} ms ({limits.p95_factor:g} x {then_ms:.2f} before)"
        if recorded is not None:
            most = max(limits.recorded_factor * recorded, recorded + SLACK_MS)
            if most < allowed and (then_ms is None or then_ms <= most):
                allowed = most
                limit = f"{allowed:.2f} ms ({limits.recorded_factor:g} x {recorded:.2f} recorded)"
        yield Check(
            name=f"{one.model} p95 latency",
            passed=one.p95_ms <= allowed,
            measured=f"{one.p95_ms:.2f} ms",
            limit=limit,
            factor=None if then_ms is None else _factor(one.p95_ms, then_ms),
        )


def memory_check(
    before: int | None,
    peak: int | None,
    manifest: Manifest,
    variants: Mapping[str, str],
    limits: Limits,
) -> Check:
    """Return whether the agent's memory is in proportion: to before, and to what was recorded.

    Both count as in `latency_checks`. peak: the most that was seen while it was on trial; None is
    "cannot tell", which passes.
    """
    recorded = _recorded_bytes(manifest, variants)
    allowed, limit = 2**63, "nothing to compare with"
    if before is not None:
        allowed = int(max(limits.memory_factor * before, before + SLACK_BYTES))
        limit = f"{_megabytes(allowed)} ({limits.memory_factor:g} x {_megabytes(before)} before)"
    if recorded:
        # The agent itself takes about as much as SLACK_BYTES twice over.
        most = int(limits.recorded_factor * recorded + 4 * SLACK_BYTES)
        if most < allowed and (before is None or before <= most):
            allowed, limit = most, f"{_megabytes(most)} ({_megabytes(recorded)} recorded)"
    return Check(
        name="peak memory",
        passed=peak is None or peak <= allowed,
        measured="unknown" if peak is None else _megabytes(peak),
        limit=limit,
        factor=None if peak is None or not before else _factor(peak, before),
    )


def probation_checks(
    first: Seen, last: Seen, interruptions: Sequence[str], limits: Limits
) -> Iterator[Check]:
    """Yield whether the agent stayed up, and whether requests failed meanwhile.

    interruptions: what went wrong when it was looked at, in words.
    """
    restarted = last.uptime_s < first.uptime_s
    problems = [*interruptions, *(["the agent was restarted"] if restarted else [])]
    yield Check(
        name="no interruption",
        passed=not problems,
        measured=f"{len(problems)} in {limits.probation_s:g} s",
        limit="none",
        reason=problems[0] if problems else "",
    )
    answered, failed = (
        max(0, now - then) for now, then in zip(last.requests(), first.requests(), strict=True)
    )
    share = failed / (answered + failed) if failed else 0.0
    yield Check(
        name="no error burst",
        passed=failed <= FEW_ERRORS or share <= limits.error_share,
        measured=f"{failed} of {answered + failed} requests failed",
        limit=f"{100 * limits.error_share:g} %",
    )


def replay_checks(
    report: ReplayReport, limits: Limits, closeness: Mapping[str, Closeness]
) -> Iterator[Check]:
    """Yield whether recorded requests are answered as by the bundle before, and as fast."""
    problems = [*report.problems, *report.statuses]
    tolerances = ", ".join(f"{c.tolerance:.2g} ({name})" for name, c in closeness.items())
    yield Check(
        name="replay answers",
        passed=report.is_same,
        measured=f"{report.different} of {report.requests} requests differ",
        limit=f"none, beyond a relative error of {tolerances or limits.replay_tolerance}",
        reason="" if report.is_same else "; ".join(problems[:3]),
    )
    if any(close.scores is not None for close in closeness.values()):
        most = max(FEW_RECLASSIFIED, limits.reclassified_share * report.compared)
        yield Check(
            name="replay classes",
            passed=report.reclassified <= most,
            measured=f"{_percent(report.reclassified, report.compared)} of the rows have another "
            "best class",
            limit=_percent(most, report.compared),
        )
    then = report.latency[0].p95_ms
    now = report.latency[-1].p95_ms
    allowed = math.inf if then is None else max(limits.p95_factor * then, then + SLACK_MS)
    yield Check(
        name="replay p95 latency",
        passed=now is not None and now <= allowed,
        measured="no answer" if now is None else f"{now:.2f} ms",
        limit="nothing to compare with" if then is None else f"{allowed:.2f} ms",
    )


def _percent(part: float, whole: int) -> str:
    return f"{100 * part / max(1, whole):.3g} %"


def _factor(now: float, before: float) -> float | None:
    return round(now / before, 4) if before > 0 and math.isfinite(now) else None


def _recorded_ms(manifest: Manifest, name: str, variant: str | None) -> float | None:
    found = _variant(manifest, name, variant)
    times = [] if found is None else [m.p99_ms for m in found.measurements]
    return max(times, default=None)


def _recorded_bytes(manifest: Manifest, variants: Mapping[str, str]) -> int:
    found = [_variant(manifest, name, variant) for name, variant in variants.items()]
    return sum(
        v.engine.memory_bytes if v.engine is not None else v.memory_bytes
        for v in found
        if v is not None
    )


def _variant(manifest: Manifest, name: str, variant: str | None) -> Variant | None:
    model: Model | None = next((m for m in manifest.models if m.name == name), None)
    if model is None:
        return None
    return next((v for v in model.variants if v.id == variant), None)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
