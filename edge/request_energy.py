"""Joules per answered request, from the energy that was counted and the requests in that time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from edge.metrics import OUTCOME_OK
from edge.probes.sample import Sample
from edge.serving import Serving

WINDOW_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    at_s: float
    joules: float
    answered: int


class RequestEnergy:
    """Divides the energy of the last minute by the requests that were answered in it.

    All energy counts, that of waiting as well: at little load a request costs more.
    """

    def __init__(self, serving: Serving, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._serving = serving
        self._clock = clock
        self._readings: deque[_Reading] = deque(maxlen=600)

    def take(self, sample: Sample) -> None:
        """Take a reading; what it tells then is `serving.joules_per_request`."""
        joules, served = energy_joules(sample), self._serving.served.values()
        answered = sum(one.metrics.outcomes().get(OUTCOME_OK, 0) for one in served)
        now = self._clock()
        last = self._readings[-1] if self._readings else None
        is_anew = last is not None and joules is not None and last.joules > joules
        if joules is None or is_anew or (last is not None and last.answered > answered):
            self._readings.clear()
        if joules is None:
            self._serving.joules_per_request = None
            return
        if last is not None and last.joules == joules and self._readings:
            return  # the counter has not been asked anew
        self._readings.append(_Reading(at_s=now, joules=joules, answered=answered))
        while now - self._readings[0].at_s > WINDOW_S and len(self._readings) > 1:
            self._readings.popleft()
        first = self._readings[0]
        requests = answered - first.answered
        self._serving.joules_per_request = (joules - first.joules) / requests if requests else None


def energy_joules(sample: Sample) -> float | None:
    """Return what the module has taken, or all GPUs where the module does not say."""
    if sample.energy_joules is not None:
        return sample.energy_joules
    known = [gpu.energy_joules for gpu in sample.gpus if gpu.energy_joules is not None]
    return sum(known) if known and len(known) == len(sample.gpus) else None
