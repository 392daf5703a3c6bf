"""What a replay found: statuses, outputs, latency; as a table and as JSON."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edge.capture.answers import BEST_CLASS, Closeness, errors_between
from edge.capture.capture_file import Exchange
from edge.capture.replay import Sent
from edge.http_client import MAX_ANSWER_BYTES, Received
from edge.routes import Route

_QUANTILES = (0.50, 0.95, 0.99)
_NAMED = 10  # requests that differ, by number


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Percentiles of answered requests (status 200), in milliseconds; None if there is none."""

    who: str
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputErrors:
    """One output of one model. worst: None if it is infinite (shape, type or text differ)."""

    output: str
    compared: int
    beyond: int
    worst: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a replay found. is_same: no error that was not there before, no output beyond tolerance.

    statuses: "200 -> 429" and how often. problems: requests without an answer, by reason.
    not_compared: redacted requests, whose recorded answers are not kept. differing: requests by
    number, the first of them; different: how many there are. reclassified: of the rows of all
    requests, as if each request had one, how many have another best class, where that was asked
    for; they do not count as different.
    """

    is_same: bool
    requests: int
    compared: int
    not_compared: int
    outputs: tuple[OutputErrors, ...]
    statuses: dict[str, int]
    problems: dict[str, int]
    differing: tuple[int, ...]
    latency: tuple[Latency, ...]
    different: int = 0
    reclassified: float = 0.0


def report_from_replay(
    exchanges: Sequence[Exchange],
    sent: Sequence[Sent],
    *,
    tolerance: float,
    against: Sequence[Sent] | None = None,
    closeness: Mapping[str, Closeness] | None = None,
) -> Report:
    """Compare what was sent with what was recorded, or with what the second agent answered.

    tolerance: the largest relative error of an output that is not beyond it. closeness: by model,
    instead of tolerance.
    """
    errors: dict[str, list[float]] = {}
    allowed: dict[str, float] = {}
    reclassified = 0.0
    statuses: Counter[str] = Counter()
    problems: Counter[str] = Counter()
    differing: list[int] = []
    compared = not_compared = 0
    for index, exchange in enumerate(exchanges):
        got = sent[index] if against is None else against[index]
        reference: Received | None = _recorded(exchange)
        missing = [got.problem]
        if against is not None:
            reference = sent[index].answer
            missing.append(sent[index].problem)
        problems.update(problem for problem in missing if problem is not None)
        if got.answer is None or reference is None:
            differing.append(index + 1)
            continue
        was, now = reference.status, got.answer.status
        if was != now:
            statuses[f"{was} -> {now}"] += 1
            if now >= 400 or against is not None:
                differing.append(index + 1)
        elif now == 200 and against is None and exchange.is_redacted:
            not_compared += 1
        elif now == 200:
            compared += 1
            close = (closeness or {}).get(_asked(exchange), Closeness(tolerance=tolerance))
            found = errors_between(
                (got.answer.headers, got.answer.body),
                (reference.headers, reference.body),
                max_bytes=MAX_ANSWER_BYTES,
                scores=close.scores,
            )
            for name, error in found.items():
                errors.setdefault(f"{_model(exchange)} {name}", []).append(error)
                allowed[f"{_model(exchange)} {name}"] = close.tolerance
            reclassified += found.pop(BEST_CLASS, 0.0)
            if not all(error <= close.tolerance for error in found.values()):
                differing.append(index + 1)
    recorded_s = [e.latency_s for e in exchanges if e.status == 200]
    latency = [_latency("recorded", recorded_s), _latency("now", _answered(sent))]
    if against is not None:
        latency.append(_latency("against", _answered(against)))
    return Report(
        is_same=not differing,
        requests=len(exchanges),
        compared=compared,
        not_compared=not_compared,
        outputs=tuple(_row(name, errors[name], allowed[name]) for name in sorted(errors)),
        statuses=dict(statuses),
        problems=dict(problems),
        differing=tuple(differing[:_NAMED]),
        latency=tuple(latency),
        different=len(differing),
        reclassified=reclassified,
    )


def lines_from_report(report: Report, *, tolerance: float) -> Iterator[str]:
    """Yield the report as text of at most 80 columns."""
    yield f"{'latency ms':<40}{'p50':>12}{'p95':>12}{'p99':>12}"
    for latency in report.latency:
        values = (latency.p50_ms, latency.p95_ms, latency.p99_ms)
        cells = ("-" if value is None else f"{value:.2f}" for value in values)
        yield f"{latency.who:<40}" + "".join(f"{cell:>12}" for cell in cells)
    yield ""
    yield f"{'output':<40}{'compared':>12}{'beyond':>12}{'worst error':>14}"
    for row in report.outputs:
        worst = "differs" if row.worst is None else f"{row.worst:.2e}"
        yield f"{_short(row.output, 39):<40}{row.compared:>12}{row.beyond:>12}{worst:>14}"
    yield ""
    for change, count in report.statuses.items():
        yield f"status {change}: {count}"
    for problem, count in report.problems.items():
        yield _short(f"no answer, {count}: {problem}", 80)
    if report.not_compared:
        yield f"redacted, only the status compared: {report.not_compared}"
    if report.differing:
        more = ", ..." if len(report.differing) == _NAMED else ""
        yield "differ: requests " + ", ".join(map(str, report.differing)) + more
    verdict = "same" if report.is_same else "NOT THE SAME"
    yield f"{verdict}: {report.compared} of {report.requests} compared, tolerance {tolerance:g}"


def _recorded(exchange: Exchange) -> Received:
    headers = {name.lower(): value for name, value in exchange.answer_headers.items()}
    return Received(status=exchange.status, headers=headers, body=exchange.answer)


def _answered(sent: Sequence[Sent]) -> list[float]:
    return [s.latency_s for s in sent if s.answer is not None and s.answer.status == 200]


def _latency(who: str, seconds: Sequence[float]) -> Latency:
    if not seconds:
        return Latency(who=who, p50_ms=None, p95_ms=None, p99_ms=None)
    p50, p95, p99 = np.quantile(seconds, _QUANTILES, method="inverted_cdf") * 1e3
    return Latency(who=who, p50_ms=float(p50), p95_ms=float(p95), p99_ms=float(p99))


def _row(name: str, errors: Sequence[float], tolerance: float) -> OutputErrors:
    worst = max(errors)
    return OutputErrors(
        output=name,
        compared=len(errors),
        beyond=sum(not error <= tolerance for error in errors),
        worst=worst if math.isfinite(worst) else None,
    )


def _model(exchange: Exchange) -> str:
    return exchange.path.removeprefix("/v2/models/").removesuffix("/").removesuffix("/infer")


def _asked(exchange: Exchange) -> str:
    """Return the model that was asked; empty where the body names it."""
    route = Route.of(exchange.path)
    return "" if route is None else route.name or ""


def _short(text: str, columns: int) -> str:
    return text if len(text) <= columns else text[: columns - 3] + "..."
