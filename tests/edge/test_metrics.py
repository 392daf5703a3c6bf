import re
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from edge.metrics import BUCKETS_S, Metrics, ModelState, State
from edge.probes.sample import GpuSample, Sample
from edge.slots.watching import SlotFacts
from edge.statistics import ModelStatistics
from edge.update.status import PassStatus

MODEL = ModelState(
    model="m",
    version="1",
    variant="int8",
    backend="ort",
    on_gpu=False,
    queue_depth=3,
    statistics=ModelStatistics(),
)


def make_metrics(sample: Sample | None = None, *models: ModelState) -> Metrics:
    state = State(bundle="b", signed=True, models=models or (MODEL,), sample=sample or Sample())
    return Metrics(lambda: state)


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.exposition().decode())
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return samples(metrics)[name, frozenset(labels.items())]


def test_a_duration_falls_into_the_buckets_of_its_stage() -> None:
    metrics = make_metrics()
    metrics.for_model("m").record_answer(queue_s=0.0004, compute_s=0.004, total_s=0.0045)
    name = "edge_inference_request_duration_seconds"
    assert value(metrics, f"{name}_bucket", model="m", stage="queue", le="0.0005") == 1
    assert value(metrics, f"{name}_bucket", model="m", stage="compute", le="0.003") == 0
    assert value(metrics, f"{name}_bucket", model="m", stage="compute", le="0.005") == 1
    assert value(metrics, f"{name}_sum", model="m", stage="total") == pytest.approx(0.0045)
    assert value(metrics, f"{name}_count", model="m", stage="total") == 1


def test_there_are_twenty_rising_buckets_from_half_a_millisecond_to_ten_seconds() -> None:
    assert len(BUCKETS_S) == 20
    assert list(BUCKETS_S) == sorted(set(BUCKETS_S))
    assert (BUCKETS_S[0], BUCKETS_S[-1]) == (0.0005, 10.0)


def test_requests_are_counted_by_outcome() -> None:
    metrics = make_metrics()
    recorder = metrics.for_model("m")
    metrics.for_model("other").record_error("deadline")
    recorder.record_answer(queue_s=0, compute_s=0, total_s=0)
    recorder.record_error("input")
    recorder.record_error("input")
    assert value(metrics, "edge_inference_requests_total", model="m", outcome="ok") == 1
    assert value(metrics, "edge_inference_requests_total", model="m", outcome="input") == 2
    assert recorder.outcomes() == {"ok": 1, "input": 2}


def test_gauges_show_the_state_at_the_scrape() -> None:
    sample = Sample(
        rss_bytes=10,
        memory_available_bytes=20,
        temperatures_celsius={"cpu-thermal": 41.5},
    )
    metrics = make_metrics(sample)
    assert value(metrics, "edge_queue_depth", model="m") == 3
    assert value(metrics, "edge_process_resident_memory_bytes") == 10
    assert value(metrics, "edge_memory_available_bytes") == 20
    assert value(metrics, "edge_temperature_celsius", zone="cpu-thermal") == 41.5
    assert value(metrics, "edge_gpu_backend_active") == 0
    labels = {"bundle": "b", "model": "m", "version": "1", "variant": "int8", "backend": "ort"}
    assert value(metrics, "edge_bundle_info", signed="true", **labels) == 1


def test_a_gpu_is_reported_under_our_names_and_under_tritons() -> None:
    gpu = GpuSample(
        memory="unified",
        memory_used_bytes=3,
        memory_total_bytes=8,
        utilization_percent=25.0,
        clock_hz=10**9,
        temperature_celsius=50.0,
        power_watts=12.5,
        energy_joules=99.0,
        throttle_reasons=("thermal",),
    )
    metrics = make_metrics(Sample(gpus=(GpuSample(), gpu), power_watts=20.0, energy_joules=7.0))
    assert value(metrics, "edge_gpu_memory_used_bytes", gpu="1", kind="unified") == 3
    assert value(metrics, "edge_gpu_utilization_ratio", gpu="1") == 0.25
    assert value(metrics, "edge_gpu_clock_hertz", gpu="1") == 1e9
    assert value(metrics, "edge_gpu_temperature_celsius", gpu="1") == 50
    assert value(metrics, "edge_gpu_power_watts", gpu="1") == 12.5
    assert value(metrics, "edge_gpu_throttled", gpu="1", reason="thermal") == 1
    assert value(metrics, "edge_power_watts") == 20
    assert value(metrics, "edge_energy_joules_total", source="gpu1") == 99
    assert value(metrics, "edge_energy_joules_total", source="module") == 7
    assert value(metrics, "nv_gpu_utilization", gpu_uuid="1") == 0.25
    assert value(metrics, "nv_gpu_memory_total_bytes", gpu_uuid="1") == 8
    assert value(metrics, "nv_gpu_memory_used_bytes", gpu_uuid="1") == 3
    assert value(metrics, "nv_gpu_power_usage", gpu_uuid="1") == 12.5
    assert value(metrics, "nv_energy_consumption", gpu_uuid="1") == 99
    # The first GPU tells nothing, so it has no series.
    assert not [labels for _, labels in samples(metrics) if ("gpu", "0") in labels]


def test_what_cannot_be_told_is_absent_not_zero() -> None:
    names = {name for name, _ in samples(make_metrics(Sample()))}
    assert "edge_memory_available_bytes" not in names
    assert "edge_process_resident_memory_bytes" not in names
    assert "edge_temperature_celsius" not in names


def test_a_gpu_backend_is_reported_as_active() -> None:
    gpu = replace(MODEL, variant="engine", backend="trt", on_gpu=True)
    assert value(make_metrics(None, gpu), "edge_gpu_backend_active") == 1


def test_names_follow_the_rules_of_prometheus() -> None:
    metrics = make_metrics(Sample(rss_bytes=1, memory_available_bytes=1))
    metrics.for_model("m").record_answer(queue_s=0, compute_s=0, total_s=0)
    families = list(text_string_to_metric_families(metrics.exposition().decode()))
    assert families
    for family in families:
        assert re.fullmatch(r"(edge|nv_inference|nv_gpu|nv_energy)_[a-z0-9_]+", family.name)
        assert family.documentation
        assert not family.name.endswith("_created")


def test_two_agents_in_one_process_do_not_share_counts() -> None:
    first, second = make_metrics(), make_metrics()
    first.for_model("m").record_error("input")
    assert second.for_model("m").outcomes() == {"ok": 0}


def test_dashboards_of_triton_find_their_counters() -> None:
    statistics = ModelStatistics()
    for _ in range(2):
        statistics.record_answer(
            rows=3, parse_s=0.001, queue_s=0.002, compute_s=0.003, encode_s=0.004
        )
    statistics.record_run(6, 0.003)
    for code in ("queue-full", "deadline", "cancelled", "inference", "input"):
        statistics.record_failure(code, 1.0)
    metrics = make_metrics(None, replace(MODEL, statistics=statistics))
    of = {"model": "m", "version": "1"}
    assert value(metrics, "nv_inference_request_success", **of) == 2
    assert value(metrics, "nv_inference_count", **of) == 6
    assert value(metrics, "nv_inference_exec_count", **of) == 1
    assert value(metrics, "nv_inference_pending_request_count", **of) == 3
    durations = {
        "request": 20_000, "queue": 4_000, "compute_input": 2_000, "compute_infer": 6_000,
        "compute_output": 8_000,
    }  # fmt: skip
    for stage, microseconds in durations.items():
        name = f"nv_inference_{stage}_duration_us"
        assert value(metrics, name, **of) == pytest.approx(microseconds)
    for reason, count in {"REJECTED": 2, "CANCELED": 1, "BACKEND": 1, "OTHER": 1}.items():
        assert value(metrics, "nv_inference_request_failure", reason=reason, **of) == count


def test_the_slot_that_is_served_is_told_where_there_are_slots() -> None:
    slots = SlotFacts(slot="b", phase="trial")
    state = State(bundle="b", signed=True, models=(MODEL,), slots=slots, sample=Sample())
    assert value(Metrics(lambda: state), "edge_slot_info", slot="b", phase="trial") == 1
    assert not [name for name, _ in samples(make_metrics()) if name == "edge_slot_info"]


def test_the_last_update_is_told_where_a_channel_is_followed() -> None:
    update = PassStatus(
        at="2026-03-01T00:01:00Z", verdict="failed", reason="it is stale", code="freshness",
        good_at="2026-03-01T00:00:00Z",
    )  # fmt: skip
    state = State(bundle="b", signed=True, models=(MODEL,), update=update, sample=Sample())
    metrics = Metrics(lambda: state)
    assert value(metrics, "edge_update_info", verdict="failed", code="freshness") == 1
    assert value(metrics, "edge_update_pass_timestamp_seconds") == 1772323260
    assert value(metrics, "edge_update_good_timestamp_seconds") == 1772323200
    assert not [name for name, _ in samples(make_metrics()) if name.startswith("edge_update")]


def test_a_damaged_time_of_an_update_has_no_series() -> None:
    update = PassStatus(at="yesterday", verdict="current", reason="")
    state = State(bundle="b", signed=True, models=(MODEL,), update=update, sample=Sample())
    names = {name for name, _ in samples(Metrics(lambda: state))}
    assert "edge_update_info" in names
    assert not {name for name in names if name.startswith("edge_update") and "seconds" in name}
