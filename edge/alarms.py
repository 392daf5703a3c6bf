"""Alarms: what is wrong with the machine or a model, since when, and in which words.

A finding says of one reading whether it is bad, well, or between the two limits; a Latch turns
findings into an alarm that comes and goes once. Nothing here can fail a request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from edge.leak import Growth, LeakWatch
from edge.probes.sample import GpuSample, Sample

# Share of memory below which the kernel may soon kill, and above which all is well again.
LOW_SHARE, AMPLE_SHARE = 0.05, 0.08
# A model is opened only where `memory_reserve_bytes`, 256 MiB by default, stay free, so a card
# that is full by plan is not low.
LOW_DEVICE_BYTES, AMPLE_DEVICE_BYTES = 128 << 20, 192 << 20
# Below the limit that the zone or the card tells; for those that tell none, see docs.
HOT_MARGIN_CELSIUS, COOL_MARGIN_CELSIUS = 5.0, 10.0
DEFAULT_LIMIT_CELSIUS = 95.0
# Shares of THROTTLE_WINDOW_S in which something held the clocks down.
THROTTLED_SHARE, FREE_SHARE = 0.5, 0.1
THROTTLE_WINDOW_S = 60.0
_MIN_READINGS = 20
# What nobody can tell any more is no alarm after this long.
FORGET_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """Something is wrong. since_s: Unix time. model: whose, None for the machine."""

    name: str
    since_s: float
    model: str | None
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What can be told of one alarm now; alarm is None while all is well."""

    name: str
    model: str | None
    alarm: Alarm | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one reading says. is_bad: None is between the limits. since_s: Unix time, if known."""

    is_bad: bool | None
    detail: str
    since_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Seconds for which an alarm must be bad to come on, and well to go off."""

    on_s: float
    off_s: float


PATIENCE: Mapping[str, Patience] = {
    "memory-leak": Patience(on_s=0.0, off_s=60.0),
    "memory-low": Patience(on_s=3.0, off_s=30.0),
    "hot": Patience(on_s=10.0, off_s=30.0),
    "throttled": Patience(on_s=0.0, off_s=30.0),
    "drift": Patience(on_s=0.0, off_s=0.0),  # has a hysteresis of its own
}


class Latch:
    """Turns findings into an alarm that stays until all has been well for a while."""

    def __init__(self, name: str, model: str | None) -> None:
        self._name = name
        self._model = model
        self._patience = PATIENCE[name]
        self._turned: float | None = None  # since when findings ask for the other state
        self._last = float("-inf")
        self.alarm: Alarm | None = None

    def step(self, finding: Finding | None, *, now: float, wall_s: float) -> Told | None:
        """Return what can be told after a finding, None where it cannot be told.

        finding: None where this reading cannot tell: the alarm stays as it is for FORGET_S. now:
        monotonic; wall_s: Unix time, which only names the beginning.
        """
        if finding is None:
            self._turned = None
            if now - self._last > FORGET_S:
                self.alarm = None
                return None
        else:
            self._last = now
            self._turn(finding, now, wall_s)
        return Told(name=self._name, model=self._model, alarm=self.alarm)

    def _turn(self, finding: Finding, now: float, wall_s: float) -> None:
        is_on = self.alarm is not None
        if finding.is_bad is None or finding.is_bad is is_on:
            self._turned = None
            return
        self._turned = now if self._turned is None else self._turned
        lasted_s = now - self._turned
        if lasted_s < (self._patience.off_s if is_on else self._patience.on_s):
            return
        self._turned = None
        since_s = wall_s - lasted_s if finding.since_s is None else finding.since_s
        self.alarm = (
            None
            if is_on
            else Alarm(name=self._name, since_s=since_s, model=self._model, detail=finding.detail)
        )


def memory_finding(sample: Sample) -> Finding | None:
    """Return whether the machine or a card is about to run out of memory."""
    total, available = sample.memory_total_bytes, sample.memory_available_bytes
    findings = []
    if total and available is not None:
        findings.append(
            Finding(
                is_bad=_between(available, LOW_SHARE * total, AMPLE_SHARE * total),
                detail=f"{_mib(available)} of {_mib(total)} memory are available; below that the "
                "kernel kills: serve fewer or smaller models, or less chat_context",
            )
        )
    for number, gpu in enumerate(sample.gpus):
        size, used = gpu.memory_total_bytes, gpu.memory_used_bytes
        if gpu.memory == "device" and size and used is not None:
            low = min(LOW_SHARE * size, LOW_DEVICE_BYTES)
            ample = min(AMPLE_SHARE * size, AMPLE_DEVICE_BYTES)
            detail = f"{_mib(size - used)} of {_mib(size)} are free on GPU {number}"
            findings.append(Finding(is_bad=_between(size - used, low, ample), detail=detail))
    return worst(findings)


def heat_finding(sample: Sample) -> Finding | None:
    """Return whether a thermal zone or a card is near the limit at which it slows down."""
    limits = sample.temperature_limits_celsius
    places = [
        (f"zone {zone!r}", celsius, limits.get(zone))
        for zone, celsius in sample.temperatures_celsius.items()
    ]
    places += [
        (f"GPU {number}", gpu.temperature_celsius, gpu.temperature_limit_celsius)
        for number, gpu in enumerate(sample.gpus)
        if gpu.temperature_celsius is not None
    ]
    return worst(_heat_of(*place) for place in places)


def _heat_of(place: str, celsius: float, own_limit: float | None) -> Finding:
    limit = DEFAULT_LIMIT_CELSIUS if own_limit is None else own_limit
    whose = "the default" if own_limit is None else "its own"
    is_cool = celsius < limit - COOL_MARGIN_CELSIUS
    return Finding(
        is_bad=True if celsius >= limit - HOT_MARGIN_CELSIUS else (False if is_cool else None),
        detail=f"{place} has {celsius:g} C, near the limit of {limit:g} C ({whose}), where clocks "
        "go down: cool it, or lower the power mode",
    )


class ThrottleWatch:
    """Whether something has held the clocks of a GPU down for most of the last minute."""

    def __init__(self) -> None:
        self._readings: deque[tuple[float, tuple[str, ...]]] = deque(maxlen=600)

    def finding(self, gpus: Iterable[GpuSample], now: float) -> Finding | None:
        """Take a reading and return what the last minute was like; None if no GPU can tell."""
        told = [gpu.throttle_reasons for gpu in gpus if gpu.throttle_reasons is not None]
        if not told:
            self._readings.clear()
            return None
        self._readings.append((now, tuple(reason for reasons in told for reason in reasons)))
        while now - self._readings[0][0] > THROTTLE_WINDOW_S:
            self._readings.popleft()
        if len(self._readings) < _MIN_READINGS:
            return Finding(is_bad=None, detail="")
        held = [reasons for _, reasons in self._readings if reasons]
        share = len(held) / len(self._readings)
        names = ", ".join(sorted({reason for reasons in held for reason in reasons}))
        return Finding(
            is_bad=True if share >= THROTTLED_SHARE else (False if share <= FREE_SHARE else None),
            detail=f"clocks of a GPU are held down ({names}) in {share:.0%} of the last minute: "
            "cool it, or give it more power",
        )


class LeakFinder:
    """Whether resident or device memory grows with the requests."""

    def __init__(self) -> None:
        self._watches = {"resident memory": LeakWatch(), "memory of the GPU": LeakWatch()}

    def restart(self) -> None:
        """Warm up anew: other models are open than before."""
        for watch in self._watches.values():
            watch.restart()

    def finding(
        self, sample: Sample, *, answered: int, now: float, wall_s: float
    ) -> Finding | None:
        """Take a reading and return what is known; None where no memory can be told."""
        read = zip(self._watches.items(), (sample.rss_bytes, _device_bytes(sample)), strict=True)
        findings = []
        for (what, watch), n_bytes in read:
            if n_bytes is None:
                continue
            watch.add(answered=answered, n_bytes=n_bytes, now=now, wall_s=wall_s)
            is_well = False if watch.is_steady else None
            growth = watch.growth
            findings.append(
                Finding(is_bad=is_well, detail="")
                if growth is None
                else Finding(
                    is_bad=True, detail=_leak_detail(what, growth), since_s=growth.begin.wall_s
                )
            )
        return worst(findings)


def _leak_detail(what: str, growth: Growth) -> str:
    begin, end, slope = growth.begin, growth.end, growth.slope
    return (
        f"{what} grows by {slope.median:,.0f} bytes with each request (at least {slope.low:,.0f}) "
        f"since request {begin.answered:,}: from {_mib(begin.n_bytes)} to {_mib(end.n_bytes)} in "
        f"{end.answered - begin.answered:,} requests; reload the model or restart the agent, and "
        "report it"
    )


def _device_bytes(sample: Sample) -> int | None:
    """Return what the agent holds on all GPUs, or what all hold where the driver does not say."""
    own = [gpu.own_memory_bytes for gpu in sample.gpus]
    held = own if own and None not in own else [gpu.memory_used_bytes for gpu in sample.gpus]
    known = [n_bytes for n_bytes in held if n_bytes is not None]
    return sum(known) if known and len(known) == len(sample.gpus) else None


def worst(findings: Iterable[Finding]) -> Finding | None:
    """Return one finding for several: a bad one before one between the limits, before a good one.

    The details of all that are bad are joined.
    """
    found = tuple(findings)
    bad = [finding for finding in found if finding.is_bad]
    if bad:
        since = [finding.since_s for finding in bad if finding.since_s is not None]
        detail = "; ".join(finding.detail for finding in bad)
        return Finding(is_bad=True, detail=detail, since_s=min(since, default=None))
    return next((f for f in found if f.is_bad is None), found[0] if found else None)


def alarms_of(told: Iterable[Told]) -> Iterator[Alarm]:
    """Yield the alarms that are on."""
    return (one.alarm for one in told if one.alarm is not None)


def _between(free: float, low: float, ample: float) -> bool | None:
    if free < low:
        return True
    return False if free > ample else None


def _mib(n_bytes: float) -> str:
    return f"{n_bytes / (1 << 20):,.0f} MiB"
