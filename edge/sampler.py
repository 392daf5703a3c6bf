"""The thread that reads the machine, so that a slow driver keeps nobody else waiting."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable

from edge.config import AgentConfig
from edge.probes.host import PsutilProbe
from edge.probes.jetson import JetsonProbe
from edge.probes.jtop import JtopProbe
from edge.probes.nvml import NvmlProbe
from edge.probes.sample import Probe, ProbeChain, Sample

logger = logging.getLogger(__name__)

INTERVAL_S = 1.0
_JOIN_S = 2.0


def machine_probe(config: AgentConfig) -> Probe:
    """Return every source there is, the one that knows most first."""
    asked_for: tuple[Probe, ...] = (JtopProbe(),) if config.jtop else ()
    return EnergyMeter(ProbeChain([*asked_for, NvmlProbe(), JetsonProbe(), PsutilProbe()]))


class EnergyMeter:
    """Adds up the power of the module over time: a Probe around another.

    Between two readings the power is taken to change evenly (the trapezoidal rule).
    """

    def __init__(self, probe: Probe, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = probe.name
        self._probe = probe
        self._clock = clock
        self._last: tuple[float, float] | None = None
        self._joules = 0.0

    def read(self) -> Sample:
        """Return the other's sample with energy_joules, where it knows its power."""
        sample, now = self._probe.read(), self._clock()
        watts = sample.power_watts
        if watts is None:
            self._last = None
            return sample
        if self._last is not None:
            before, watts_before = self._last
            self._joules += (now - before) * (watts + watts_before) / 2
        self._last = (now, watts)
        return dataclasses.replace(sample, energy_joules=self._joules)

    def close(self) -> None:
        """Close the other."""
        self._probe.close()


class Sampler:
    """Reads a probe every interval_s in a thread of its own and hands the Sample over.

    take: called in that thread. The probe is opened, read and closed by that thread alone.
    """

    def __init__(
        self, probe: Probe, take: Callable[[Sample], object], *, interval_s: float = INTERVAL_S
    ) -> None:
        self._probe = probe
        self._take = take
        self._interval_s = interval_s
        self._is_failing = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="sampler", daemon=True)

    def start(self) -> None:
        """Begin to read; the first Sample comes at once."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a driver that hangs is left behind."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(_JOIN_S)

    def _work(self) -> None:
        try:
            self._sample()
            while not self._stop.wait(self._interval_s):
                self._sample()
        finally:
            self._probe.close()

    def _sample(self) -> None:
        try:
            self._take(self._probe.read())
        except Exception as error:  # noqa: BLE001 - supervised: telemetry ends with nobody's fault
            if not self._is_failing:
                logger.warning("this reading of the machine is lost: %s", error)
            self._is_failing = True
        else:
            self._is_failing = False
