"""From readings of the machine and counters of requests to alarms, in the sampler's thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from edge.alarms import (
    Alarm,
    Finding,
    Latch,
    LeakFinder,
    ThrottleWatch,
    heat_finding,
    memory_finding,
)
from edge.probes.sample import Sample
from edge.serving import Serving

logger = logging.getLogger(__name__)

JUMP_S = 60.0


class Drift(NamedTuple):
    """Whether a model's inputs have drifted: since_s is None while they have not (Unix time)."""

    model: str
    since_s: float | None
    detail: str


def drifts_of(serving: Serving) -> Iterator[Drift]:
    """Yield what the models that are watched for drift say of it."""
    for model, report in serving.drifts():
        has_drifted = report.state == "drifted"
        yield Drift(model, report.since_s if has_drifted else None, report.detail)


class AlarmWatch:
    """Takes a Sample as often as there is one, and tells what is wrong.

    drifts: what is known of the models that are watched for it; it may fail, which is logged once.
    """

    def __init__(
        self,
        serving: Serving,
        *,
        drifts: Callable[[], Iterable[Drift]] = lambda: (),
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._serving = serving
        self._drifts = drifts
        self._clock = clock
        self._wall_clock = wall_clock
        self._latches: dict[tuple[str, str | None], Latch] = {}
        self._throttling = ThrottleWatch()
        self._leaks = LeakFinder()
        self._opened: tuple[int, ...] = ()
        self._is_drift_failing = False
        self._ahead_s: float | None = None  # the clock on the wall before the monotonic one

    def take(self, sample: Sample) -> None:
        """Take a reading; what can be told then is `serving.alarms`."""
        now, wall_s = self._clock(), self._wall_clock()
        self._note_jump(wall_s - now)
        findings = {
            ("memory-leak", None): self._leak_finding(sample, now, wall_s),
            ("memory-low", None): memory_finding(sample),
            ("hot", None): heat_finding(sample),
            ("throttled", None): self._throttling.finding(sample.gpus, now),
            **self._drift_findings(),
        }
        told = []
        for key in {**self._latches, **findings}:
            latch = self._latches.setdefault(key, Latch(*key))
            before = latch.alarm
            one = latch.step(findings.get(key), now=now, wall_s=wall_s)
            _log_change(before, latch.alarm)
            if one is None:
                del self._latches[key]
            else:
                told.append(one)
        self._serving.alarms = tuple(told)

    def _note_jump(self, ahead_s: float) -> None:
        """Say that times in logs, history and alarms have a seam; nothing is measured by them."""
        before, self._ahead_s = self._ahead_s, ahead_s
        if before is not None and abs(ahead_s - before) > JUMP_S:
            logger.warning(
                "the time of day has jumped by %+.0f s: it was set, or the machine slept",
                ahead_s - before,
            )

    def _leak_finding(self, sample: Sample, now: float, wall_s: float) -> Finding | None:
        served = self._serving.served.values()
        opened = tuple(map(id, served))
        if opened != self._opened:
            self._opened = opened
            self._leaks.restart()
        answered = sum(sum(one.metrics.outcomes().values()) for one in served)
        return self._leaks.finding(sample, answered=answered, now=now, wall_s=wall_s)

    def _drift_findings(self) -> dict[tuple[str, str | None], Finding | None]:
        try:
            drifts = tuple(self._drifts())
        except Exception as error:  # noqa: BLE001 - supervised: the other alarms go on
            if not self._is_drift_failing:
                logger.warning("drift cannot be told: %s", error)
            self._is_drift_failing = True
            return {}
        self._is_drift_failing = False
        return {
            ("drift", drift.model): Finding(
                is_bad=drift.since_s is not None, detail=drift.detail, since_s=drift.since_s
            )
            for drift in drifts
        }


def _log_change(before: Alarm | None, after: Alarm | None) -> None:
    if before is None and after is not None:
        logger.warning("alarm on name=%s model=%s: %s", after.name, after.model, after.detail)
    elif before is not None and after is None:
        logger.info("alarm off name=%s model=%s", before.name, before.model)
