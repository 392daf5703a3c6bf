"""A reading of the machine, the seam that every source of one has, and several read as one.

None means that the source cannot tell; it never means zero. Units are in the names.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import zip_longest
from typing import Any, Literal, Protocol, TypeVar

logger = logging.getLogger(__name__)

BACKOFF_S = 60.0
MAX_LIMIT_CELSIUS = 150.0
_Record = TypeVar("_Record", "Sample", "GpuSample")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSample:
    """One reading of one GPU.

    memory: "unified" is the machine's own, which CPU and GPU share. own_memory_bytes: of this
    process and its children. energy_joules, pcie_received_bytes, pcie_sent_bytes: since the driver
    was loaded, energy as of some seconds ago. throttle_reasons: what holds the clocks down now.
    temperature_limit_celsius: where the GPU begins to slow itself down.
    """

    name: str | None = None
    memory: Literal["device", "unified"] | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    own_memory_bytes: int | None = None
    utilization_percent: float | None = None
    memory_utilization_percent: float | None = None
    clock_hz: int | None = None
    clock_max_hz: int | None = None
    memory_clock_hz: int | None = None
    temperature_celsius: float | None = None
    temperature_limit_celsius: float | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    energy_joules: float | None = None
    throttle_reasons: tuple[str, ...] | None = None
    pcie_received_bytes: int | None = None
    pcie_sent_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One reading of the machine; rss_bytes is this process's, the rest is system-wide.

    temperatures_celsius: by zone; empty when there is no sensor. temperature_limits_celsius: where
    the machine begins to slow itself down, for the zones that say. rails_watts: by power rail of a
    Jetson. power_watts: of the whole module. energy_joules: its sum since the agent began.
    power_mode: as the device calls it.
    """

    rss_bytes: int | None = None
    memory_available_bytes: int | None = None
    memory_total_bytes: int | None = None
    swap_used_bytes: int | None = None
    swap_total_bytes: int | None = None
    cpu_percent: float | None = None
    temperatures_celsius: Mapping[str, float] = field(default_factory=dict)
    temperature_limits_celsius: Mapping[str, float] = field(default_factory=dict)
    power_watts: float | None = None
    energy_joules: float | None = None
    rails_watts: Mapping[str, float] = field(default_factory=dict)
    power_mode: str | None = None
    gpus: tuple[GpuSample, ...] = ()


class Probe(Protocol):
    """A source of telemetry, read from one thread."""

    @property
    def name(self) -> str:
        """What logs and reports call it."""

    def read(self) -> Sample:
        """Return what this source can tell now; any exception means that it failed."""

    def close(self) -> None:
        """Release the source; calling it twice does nothing."""


class ProbeChain:
    """Several probes read as one: for each field the first probe that can tell wins.

    A probe that fails is left out for backoff_s and logged at the change only, so telemetry can
    never stop the agent; what one that works tells no more is logged once too. Itself a Probe.
    """

    name = "chain"

    def __init__(
        self,
        probes: Sequence[Probe],
        *,
        clock: Callable[[], float] = time.monotonic,
        backoff_s: float = BACKOFF_S,
    ) -> None:
        self._probes = tuple(probes)
        self._clock = clock
        self._backoff_s = backoff_s
        self._retry_at: dict[str, float] = {}
        self._told: dict[str, set[str]] = {}
        self._missed: set[tuple[str, str]] = set()

    def read(self) -> Sample:
        """Return the merged sample of every probe that answers; it is empty if none does."""
        samples = [self._read_one(probe) for probe in self._probes]
        return merge_samples([sample for sample in samples if sample is not None])

    def close(self) -> None:
        """Close every probe."""
        for probe in self._probes:
            probe.close()

    def _read_one(self, probe: Probe) -> Sample | None:
        if self._clock() < self._retry_at.get(probe.name, float("-inf")):
            return None
        try:
            sample = probe.read()
        except Exception as error:  # noqa: BLE001 - supervised: a driver may fail in any way
            if probe.name not in self._retry_at:
                logger.warning("probe failed name=%s: %s", probe.name, error)
            self._retry_at[probe.name] = self._clock() + self._backoff_s
            return None
        if self._retry_at.pop(probe.name, None) is not None:
            logger.info("probe works again name=%s", probe.name)
        self._note_missing(probe.name, sample)
        return sample

    def _note_missing(self, name: str, sample: Sample) -> None:
        told = {key.name for key in fields(Sample) if _is_told(getattr(sample, key.name))}
        before = self._told.setdefault(name, set())
        missing = {(name, key) for key in before - told} - self._missed
        before |= told
        if missing:
            self._missed |= missing
            keys = ", ".join(sorted(key for _, key in missing))
            logger.warning("probe name=%s tells no more of: %s", name, keys)


def _is_told(value: object) -> bool:
    return value is not None and value not in ({}, ())


def zone_name(kind: str) -> str:
    """Return how a thermal zone is called here: "gpu" for GPU-therm and gpu_thermal."""
    return re.sub(r"[-_]therm(al)?$", "", kind.strip().lower())


def is_limit(celsius: float) -> bool:
    """Whether a trip point can be a limit: drivers write 0, -274 or 65261 for "none"."""
    return 0.0 < celsius <= MAX_LIMIT_CELSIUS


def merge_samples(samples: Sequence[Sample]) -> Sample:
    """Return one sample: per field, thermal zone, rail and GPU, the first that can tell."""
    gpus = zip_longest(*(sample.gpus for sample in samples))
    return _first_of(
        Sample,
        samples,
        gpus=tuple(_first_of(GpuSample, [gpu for gpu in same if gpu is not None]) for same in gpus),
        temperatures_celsius=_first_by_key(sample.temperatures_celsius for sample in samples),
        temperature_limits_celsius=_first_by_key(
            sample.temperature_limits_celsius for sample in samples
        ),
        rails_watts=_first_by_key(sample.rails_watts for sample in samples),
    )


def _first_of(kind: type[_Record], records: Sequence[_Record], **known: Any) -> _Record:
    merged = dict(known)
    for key in fields(kind):
        values = (getattr(record, key.name) for record in records)
        merged.setdefault(key.name, next((value for value in values if value is not None), None))
    return kind(**merged)


def _first_by_key(tables: Iterable[Mapping[str, float]]) -> dict[str, float]:
    merged: dict[str, float] = {}
    for table in tables:
        merged = {**table, **merged}
    return merged
