"""Measurements as `bench` gives them, with one thing changed at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edge.bench.measurements import Layer, LayerTimes, Point, Runs, Served, Stages, Usage
from edge.latency import Latency

SERVED = Served(
    model="affine",
    variant="fp32",
    backend="ort",
    precision="fp32",
    on_gpu=False,
    max_batch=32,
    batch_rows=32,
    cpus=4,
    batching=True,
    bundle_batches=True,
    queue_size=64,
    batch_window_ms=5.0,
    intra_op_threads=4,
)
USAGE = Usage(engine_share=0.7, cpu_s=36.0, rss_bytes=100 << 20)
# A load that nothing is wrong with.
POINT = Point(
    connections=8,
    offered=None,
    rows=1,
    binary=True,
    requests_per_s=800.0,
    rows_per_s=800.0,
    latency=Latency(
        answers=8000, mean_ms=10.0, p50_ms=9.0, p90_ms=12.0, p99_ms=20.0, p999_ms=30.0, max_ms=40.0
    ),
    refused={},
    refused_p99_ms=None,
    lost=0,
    unanswered=0,
    wall_s=10.0,
    runs=(Runs(rows=8, count=1000, mean_ms=7.0),),
    stages=Stages(parse_ms=0.1, queue_ms=0.5, compute_ms=9.0, encode_ms=0.1),
    usage=USAGE,
    client_share=0.2,
)
LAYERS = LayerTimes(
    where="variant int8",
    source="a trace",
    rows=8,
    runs=100,
    run_ms=1.0,
    backend="ort",
    layers=(
        Layer(name="conv1", kind="QLinearConv", precision="int8", mean_ms=0.5),
        Layer(name="conv2", kind="QLinearConv", precision="int8", mean_ms=0.4),
    ),
)


def point(**changes: Any) -> Point:
    return replace(POINT, **changes)


def stages(**changes: float) -> Stages:
    assert POINT.stages is not None
    return replace(POINT.stages, **changes)


def layer(kind: str, mean_ms: float, precision: str = "fp32") -> Layer:
    return Layer(name=kind.lower(), kind=kind, precision=precision, mean_ms=mean_ms)
