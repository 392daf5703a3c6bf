"""A reading of the machine as Prometheus metrics, and Triton's names for those of a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from edge.probes.sample import GpuSample, Sample

_GpuValue = Callable[[GpuSample], float | None]


def machine_metrics(sample: Sample) -> Iterator[Metric]:
    """Yield what the sample can tell; what it cannot has no series, rather than a zero."""
    yield from _single(
        "edge_memory_available_bytes",
        "Memory that new allocations can use without swapping.",
        sample.memory_available_bytes,
    )
    yield from _single(
        "edge_memory_total_bytes", "Memory of the machine.", sample.memory_total_bytes
    )
    yield from _single("edge_swap_used_bytes", "Swap in use.", sample.swap_used_bytes)
    yield from _single(
        "edge_process_resident_memory_bytes", "Resident memory of the agent.", sample.rss_bytes
    )
    yield from _single("edge_power_watts", "Power of the whole module.", sample.power_watts)
    yield from _labelled(
        "edge_rail_power_watts", "Power of a supply rail.", "rail", sample.rails_watts.items()
    )
    yield from _labelled(
        "edge_temperature_celsius",
        "Temperature of a thermal zone.",
        "zone",
        sample.temperatures_celsius.items(),
    )
    yield from _labelled(
        "edge_temperature_limit_celsius",
        "Temperature of a thermal zone at which the machine begins to slow itself down.",
        "zone",
        sample.temperature_limits_celsius.items(),
    )
    yield _energy_metric(sample)
    yield from _gpu_metrics(sample.gpus)


def _gpu_metrics(gpus: tuple[GpuSample, ...]) -> Iterator[Metric]:
    used = GaugeMetricFamily(
        "edge_gpu_memory_used_bytes",
        "Memory that is allocated on a GPU, or by it where CPU and GPU share one.",
        labels=("gpu", "kind"),
    )
    throttled = GaugeMetricFamily(
        "edge_gpu_throttled",
        "1 while something holds the clocks of a GPU down, by reason.",
        labels=("gpu", "reason"),
    )
    for number, gpu in enumerate(gpus):
        if gpu.memory_used_bytes is not None and gpu.memory is not None:
            used.add_metric([str(number), gpu.memory], gpu.memory_used_bytes)
        for reason in gpu.throttle_reasons or ():
            throttled.add_metric([str(number), reason], 1)
    yield used
    yield throttled
    for name, about, value in _GPU_GAUGES:
        yield from _by_gpu(name, about, "gpu", gpus, value)
    # Of unknown type, as one of them counts without "_total" in its name.
    for name, about, value in _TRITON_GAUGES:
        for metric in _by_gpu(name, about, "gpu_uuid", gpus, value):
            metric.type = "unknown"
            yield metric


_GPU_GAUGES: tuple[tuple[str, str, _GpuValue], ...] = (
    ("edge_gpu_clock_hertz", "Clock of a GPU.", lambda gpu: gpu.clock_hz),
    ("edge_gpu_power_watts", "Power of a GPU.", lambda gpu: gpu.power_watts),
    ("edge_gpu_temperature_celsius", "Temperature of a GPU.", lambda gpu: gpu.temperature_celsius),
    (
        "edge_gpu_temperature_limit_celsius",
        "Temperature at which a GPU begins to slow itself down.",
        lambda gpu: gpu.temperature_limit_celsius,
    ),
    (
        "edge_gpu_utilization_ratio",
        "Share of the time in which a GPU was busy, 0 to 1.",
        lambda gpu: _share(gpu.utilization_percent),
    ),
)
_TRITON_GAUGES: tuple[tuple[str, str, _GpuValue], ...] = (
    (
        "nv_gpu_utilization",
        "GPU utilization rate, 0 to 1.",
        lambda gpu: _share(gpu.utilization_percent),
    ),
    (
        "nv_gpu_memory_total_bytes",
        "GPU total memory, in bytes.",
        lambda gpu: gpu.memory_total_bytes,
    ),
    ("nv_gpu_memory_used_bytes", "GPU used memory, in bytes.", lambda gpu: gpu.memory_used_bytes),
    ("nv_gpu_power_usage", "GPU power usage, in watts.", lambda gpu: gpu.power_watts),
    ("nv_energy_consumption", "GPU energy, in joules.", lambda gpu: gpu.energy_joules),
)


def _energy_metric(sample: Sample) -> Metric:
    energy = CounterMetricFamily(
        "edge_energy_joules",
        "Energy since the driver was loaded, of a GPU, or since the agent began, of the module.",
        labels=("source",),
    )
    if sample.energy_joules is not None:
        energy.add_metric(["module"], sample.energy_joules)
    for number, gpu in enumerate(sample.gpus):
        if gpu.energy_joules is not None:
            energy.add_metric([f"gpu{number}"], gpu.energy_joules)
    return energy


def _by_gpu(
    name: str, about: str, label: str, gpus: tuple[GpuSample, ...], value: _GpuValue
) -> Iterator[Metric]:
    known = [(str(number), value(gpu)) for number, gpu in enumerate(gpus)]
    yield from _labelled(name, about, label, [(n, v) for n, v in known if v is not None])


def _labelled(
    name: str, about: str, label: str, values: Iterable[tuple[str, float]]
) -> Iterator[Metric]:
    metric = GaugeMetricFamily(name, about, labels=(label,))
    for key, value in values:
        metric.add_metric([key], value)
    yield metric


def _single(name: str, about: str, value: float | None) -> Iterator[Metric]:
    if value is not None:
        yield GaugeMetricFamily(name, about, value=value)


def _share(percent: float | None) -> float | None:
    return None if percent is None else percent / 100.0
