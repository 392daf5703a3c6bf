"""What a load costs the machine: an agent's processor time and memory, and the GPU by NVML."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psutil

SAMPLE_S = 0.1
_JOIN_S = 5.0

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class GpuUse:
    """By number of the GPU: utilisation in percent, a value a sample; memory in use at the end."""

    percents: dict[int, list[int]] = field(default_factory=dict)
    memory_bytes: dict[int, int] = field(default_factory=dict)

    def clear(self) -> None:
        """Forget the samples so far: a load begins."""
        self.percents = {}

    @property
    def busiest(self) -> int | None:
        """The GPU that did most, None without NVML."""
        return max(self.percents, key=lambda gpu: sum(self.percents[gpu]), default=None)

    @property
    def share(self) -> float | None:
        """Mean utilisation of that GPU, from 0 to 1."""
        if self.busiest is None:
            return None
        percents = self.percents[self.busiest]
        return sum(percents) / len(percents) / 100

    @property
    def used_bytes(self) -> int | None:
        """Memory in use on that GPU, by everybody."""
        return None if self.busiest is None else self.memory_bytes.get(self.busiest)


def agent_at(host: str, port: int) -> psutil.Process | None:
    """Return the process of this machine that listens there, None if it cannot be told."""
    try:
        if host != "localhost" and not ipaddress.ip_address(host).is_loopback:
            return None
        listening = [
            connection
            for connection in psutil.net_connections(kind="tcp")
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        ]
        return next((psutil.Process(c.pid) for c in listening if c.pid is not None), None)
    except (psutil.Error, ValueError, OSError):
        return None


def cpu_seconds(process: psutil.Process | None) -> float | None:
    """Return the processor time of a process and its children so far, None if it cannot be told."""
    try:
        return None if process is None else sum(sum(p.cpu_times()[:2]) for p in _family(process))
    except psutil.Error:
        return None


def rss_bytes(process: psutil.Process | None) -> int | None:
    """Return the memory of a process and its children, None if it cannot be told."""
    try:
        return None if process is None else sum(p.memory_info().rss for p in _family(process))
    except psutil.Error:
        return None


def _family(process: psutil.Process) -> list[psutil.Process]:
    """Return a process and its children: an agent may give each GPU one of its own."""
    return [process, *process.children(recursive=True)]


@contextlib.contextmanager
def gpu_watched() -> Iterator[GpuUse]:
    """Sample every GPU until the end of the block; the result is complete after it."""
    use = GpuUse()
    nvml = _open_nvml()
    if nvml is None:
        yield use
        return
    stop = threading.Event()
    thread = threading.Thread(target=_watch, args=(nvml, use, stop), name="nvml", daemon=True)
    thread.start()
    try:
        yield use
    finally:
        stop.set()
        thread.join(_JOIN_S)
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _open_nvml() -> Any | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def _watch(nvml: Any, use: GpuUse, stop: threading.Event) -> None:
    try:
        handles = [
            nvml.nvmlDeviceGetHandleByIndex(i) for i in range(int(nvml.nvmlDeviceGetCount()))
        ]
        while not stop.wait(SAMPLE_S):
            for gpu, handle in enumerate(handles):
                percent = int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
                use.percents.setdefault(gpu, []).append(percent)
                use.memory_bytes[gpu] = int(nvml.nvmlDeviceGetMemoryInfo(handle).used)
    except nvml.NVMLError as error:
        logger.warning("NVML stopped to answer: %s", error)
