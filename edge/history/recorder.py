"""From readings of the machine and counters of requests to a point every ten seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from edge.history.history import INTERVAL_S, Point
from edge.probes.sample import GpuSample, Sample
from edge.served import ServedChat
from edge.serving import Serving


class HistoryRecorder:
    """Takes a Sample as often as there is one, and adds a Point to the history every interval."""

    def __init__(
        self,
        serving: Serving,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._serving = serving
        self._clock = clock
        self._wall_clock = wall_clock
        self._samples: list[Sample] = []
        self._began = clock()
        self._counts = (0, 0, 0)

    def take(self, sample: Sample) -> None:
        """Take a reading; adds the point of an interval that is over."""
        self._samples.append(sample)
        elapsed_s = self._clock() - self._began
        if elapsed_s < INTERVAL_S:
            return
        before, self._counts = self._counts, self._counted()
        answered, failed, tokens = (
            # Counters of a model that was loaded anew may begin again.
            max(0, now - then) / elapsed_s
            for now, then in zip(self._counts, before, strict=True)
        )
        point = _point(self._samples, self._serving, (answered, failed, tokens))
        self._serving.history.add(self._wall_clock(), point)
        self._samples, self._began = [], self._clock()

    def _counted(self) -> tuple[int, int, int]:
        outcomes = [served.metrics.outcomes() for served in self._serving.served.values()]
        answered = sum(counts.get("ok", 0) for counts in outcomes)
        chats = [s for s in self._serving.served.values() if isinstance(s, ServedChat)]
        tokens = sum(chat.generator.counters.generated_tokens for chat in chats)
        return answered, sum(sum(counts.values()) for counts in outcomes) - answered, tokens


def _point(samples: list[Sample], serving: Serving, rates: tuple[float, float, float]) -> Point:
    last = samples[-1]
    gpus = [gpu for sample in samples for gpu in sample.gpus]
    zones = [celsius for s in samples for celsius in s.temperatures_celsius.values()]
    heat = [gpu.temperature_celsius for gpu in gpus]
    served = tuple(serving.served.values())
    totals = [s for s in (one.latency.summary().stages.get("total") for one in served) if s]
    total, available = last.memory_total_bytes, last.memory_available_bytes
    answered, failed, tokens = rates
    return Point(
        cpu_percent=_mean(sample.cpu_percent for sample in samples),
        memory_used_bytes=None if total is None or available is None else total - available,
        rss_bytes=last.rss_bytes,
        gpu_percent=_mean(gpu.utilization_percent for gpu in gpus),
        gpu_memory_used_bytes=_sum(gpu.memory_used_bytes for gpu in last.gpus),
        gpu_clock_hz=_mean(gpu.clock_hz for gpu in gpus),
        gpu_celsius=_highest(heat),
        hottest_celsius=_highest([*heat, *zones]),
        power_watts=_mean(map(_power_watts, samples)),
        throttled=_mean(map(_is_throttled, gpus)),
        requests_per_s=answered,
        failures_per_s=failed,
        queue_depth=float(sum(one.runner.queue_depth for one in served)),
        p50_ms=_highest(total.p50_ms for total in totals),
        p95_ms=_highest(total.p95_ms for total in totals),
        tokens_per_s=tokens if any(isinstance(one, ServedChat) for one in served) else None,
    )


def _power_watts(sample: Sample) -> float | None:
    if sample.power_watts is not None:
        return sample.power_watts
    return _sum(gpu.power_watts for gpu in sample.gpus)


def _is_throttled(gpu: GpuSample) -> float | None:
    return None if gpu.throttle_reasons is None else float(bool(gpu.throttle_reasons))


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Iterable[float | None]) -> float | None:
    known = _known(values)
    return sum(known) / len(known) if known else None


def _sum(values: Iterable[float | None]) -> float | None:
    known = _known(values)
    return sum(known) if known else None


def _highest(values: Iterable[float | None]) -> float | None:
    return max(_known(values), default=None)
