"""Every rule: what it says with its evidence, and that it is silent without."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edge.bench.advice import advise
from edge.bench.measurements import (
    Advice,
    LayerTimes,
    Measurements,
    Point,
    Runs,
    Served,
    Usage,
    VariantSpeed,
)
from edge.manifest import Measurement
from tests.edge.bench.points import LAYERS, POINT, SERVED, USAGE, layer, point, stages

assert POINT.latency is not None
WAITING = stages(queue_ms=9.0)
SAVING = (Runs(rows=1, count=10, mean_ms=2.0), Runs(rows=32, count=900, mean_ms=16.0))


def on(one: Point, **served: object) -> tuple[Advice, ...]:
    return advise(
        Measurements(served=replace(SERVED, **served), points=(one,))  # type: ignore[arg-type]
    )


def on_layers(times: LayerTimes) -> tuple[Advice, ...]:
    return advise(Measurements(profile=times))


def busy(share: float, **changes: float) -> Usage:
    return replace(USAGE, engine_share=share, **changes)  # type: ignore[arg-type]


def test_a_load_that_nothing_is_wrong_with_needs_no_advice():
    assert on(POINT) == ()
    assert on_layers(LAYERS) == ()
    assert advise(Measurements()) == ()


@pytest.mark.parametrize(
    ("measured", "served", "code", "key", "evidence"),
    [
        (
            point(refused={429: 2000}, usage=busy(0.4)),
            {},
            "queue-full", "queue_size", "2000 of 10000 requests refused",
        ),
        (
            point(refused={429: 2000}, usage=busy(0.95)),
            {},
            "over-capacity", "variant", "the engine ran 95%",
        ),
        (
            point(stages=WAITING),
            {"batch_rows": 1, "batching": False},
            "not-joined", "batching", "waited for 49%",
        ),
        (
            point(stages=WAITING),
            {"batch_rows": 1, "bundle_batches": False},
            "not-joined", "edge-kit pack", "waited for 49%",
        ),
        (
            point(stages=WAITING, runs=SAVING),
            {},
            "batch-limit", "edge-kit export --shape",
            "a row took 2.000 ms in runs of 1, 0.500 ms in runs of 32",
        ),
        (
            point(stages=WAITING, runs=SAVING),
            {"max_batch": 64},
            "batch-limit", "max_batch_rows", "31.7 of 32 rows a run",
        ),
        (
            point(
                stages=stages(queue_ms=4.0, compute_ms=1.0), usage=busy(0.1),
                latency=replace(POINT.latency, mean_ms=5.4),
            ),
            {},
            "window-long", "batch_window_ms", "waited 4.00 ms of 5.20",
        ),
        (
            point(
                connections=32, usage=busy(0.98),
                runs=(Runs(rows=1, count=50, mean_ms=2.0), Runs(rows=8, count=50, mean_ms=4.0)),
            ),
            {},
            "window-short", "batch_window_ms", "4.5 of 32 rows a run",
        ),
        (
            point(usage=busy(0.95, cpu_s=10.0)),
            {"intra_op_threads": 1},
            "threads-few", "intra_op_threads", "used 1.0 of 4 processors",
        ),
        (
            POINT,
            {"intra_op_threads": 8},
            "threads-many", "intra_op_threads", "8 threads share 4 processors",
        ),
        (
            point(stages=stages(queue_ms=0.1, compute_ms=0.5), usage=busy(0.2)),
            {},
            "host-dominates", "--rows", "94% of 10.00 ms is neither waiting nor computing",
        ),
        (
            point(binary=False, stages=stages(parse_ms=3.0, encode_ms=1.0)),
            {},
            "json-slow", "binary_data_size, binary_data_output", "took 4.00 of 13.50 ms",
        ),
        (
            point(client_share=0.97),
            {},
            "client-bound", "--url", "took 97% of a processor",
        ),
    ],
)  # fmt: skip
def test_a_load_with_one_cause_gets_its_advice_with_the_evidence(
    measured, served, code, key, evidence
):
    (advice,) = on(measured, **served)
    assert (advice.code, advice.key) == (code, key)
    assert evidence in advice.evidence
    assert 0 < advice.weight <= 1


@pytest.mark.parametrize(
    ("measured", "served"),
    [
        # Larger runs cost as much a row as small ones did: more rows would not help.
        (point(stages=WAITING, runs=(Runs(rows=1, count=1, mean_ms=0.5), SAVING[1])), {}),
        # On a GPU the processors say nothing of the engine's threads.
        (point(usage=busy(0.95, cpu_s=1.0)), {"intra_op_threads": 1, "on_gpu": True}),
        # Nobody knows the threads of an agent that somebody else started.
        (point(usage=busy(0.95, cpu_s=1.0)), {"intra_op_threads": None}),
        # The client works hard because the engine is saturated anyway.
        (point(client_share=0.97, usage=busy(0.99)), {}),
        # Requests wait in front of a model that is busy: that is what a queue is for.
        (point(stages=WAITING, usage=busy(0.99)), {}),
    ],
)
def test_a_rule_without_its_measurement_is_silent(measured, served):
    assert on(measured, **served) == ()


def speed(name: str, p50_ms: float, *, device: str = "a CPU") -> VariantSpeed:
    measured = Measurement(
        device=device, runtime="1", threads=2, batch=1, runs=100, p50_ms=p50_ms, p99_ms=p50_ms
    )
    return VariantSpeed(id=name, backend="ort", precision="int8", measurements=(measured,))


def with_speeds(*speeds: VariantSpeed) -> Measurements:
    return Measurements(served=replace(SERVED, speeds=speeds))


def test_a_variant_that_was_measured_faster_is_proposed_with_both_numbers():
    (advice,) = advise(with_speeds(speed("fp32", 4.0), speed("int8", 1.0)))
    assert (advice.code, advice.key) == ("faster-variant", "variant")
    assert "1 ms for int8 and 4 for fp32" in advice.evidence
    assert advice.weight == pytest.approx(0.75)


@pytest.mark.parametrize(
    "speeds",
    [
        (speed("fp32", 4.0), speed("int8", 3.9)),
        (speed("fp32", 4.0), speed("int8", 1.0, device="another CPU")),
        (speed("int8", 1.0),),
    ],
)
def test_no_variant_is_proposed_that_was_not_measured_faster_on_the_same_machine(speeds):
    assert advise(with_speeds(*speeds)) == ()


def test_a_profile_far_larger_than_any_run_is_too_large_only_if_it_could_have_been_filled():
    served = replace(SERVED, on_gpu=True, max_batch=64, batch_rows=64)
    small = Runs(rows=8, count=100, mean_ms=1.0)
    crowded = point(connections=64, runs=(small,))
    (advice,) = advise(Measurements(served=served, points=(crowded,)))
    assert advice.code == "profile-large"
    lonely = point(connections=8, runs=(small,))
    assert advise(Measurements(served=served, points=(lonely,))) == ()


@pytest.mark.parametrize(
    ("changes", "code", "key"),
    [
        ({"layers": (*LAYERS.layers, layer("Reformat", 0.3)), "backend": "trt", "run_ms": 1.3},
         "reformats", "edge-kit build --level 5"),
        ({"layers": (*LAYERS.layers, layer("ReorderOutput", 0.3)), "run_ms": 1.3},
         "reformats", "edge-kit lint"),
        ({"layers": (*LAYERS.layers, layer("QuantizeLinear", 0.3)), "run_ms": 1.3},
         "quantizing", "edge-kit calibrate --keep-float"),
        ({"layers": (*LAYERS.layers, layer("Softmax", 0.6)), "run_ms": 1.6},
         "float-layer", "edge-kit calibrate --report"),
        ({"run_ms": 4.0}, "launches", "--rows, max_batch_rows"),
    ],
)  # fmt: skip
def test_layers_with_one_cause_get_their_advice(changes, code, key):
    (advice,) = on_layers(replace(LAYERS, **changes))
    assert (advice.code, advice.key) == (code, key)


def test_a_float_model_is_not_told_that_its_layers_are_float():
    times = replace(LAYERS, layers=(layer("Conv", 0.9), layer("Gemm", 0.1)))
    assert on_layers(times) == ()


def test_what_weighs_most_comes_first_and_each_cause_once():
    served: Served = replace(SERVED, intra_op_threads=5)
    measured = Measurements(
        served=served,
        points=(
            point(refused={429: 1000}, usage=busy(0.4)),
            point(refused={429: 8000}, usage=busy(0.4)),
        ),
    )
    first, second = advise(measured)
    assert (first.code, second.code) == ("queue-full", "threads-many")
    assert "8000 of 16000" in first.evidence
    assert first.weight > second.weight
