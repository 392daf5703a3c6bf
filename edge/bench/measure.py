"""Measures a running agent: one load after the other, and what its counters say of each."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import psutil

from edge.bench.feeds import DEFAULT_LENGTH, golden_feeds, made_feeds
from edge.bench.load_client import Load, Outcome, run_load_in_child
from edge.bench.measurements import Point, Runs, Served, Stages, Usage, VariantSpeed
from edge.bench.usage import GpuUse, agent_at, cpu_seconds, gpu_watched, rss_bytes
from edge.config import AgentConfig
from edge.errors import NotReadyError, UnknownModelError, UsageError
from edge.http_client import Address
from edge.manifest import Model
from edge.oip_client import HttpRequest, get_json, infer_request, try_request
from edge.routes import TEST_HEADER
from edge.spec import TensorSpec

MAX_DISTINCT = 16  # requests with other rows
MAX_DISTINCT_BYTES = 64 << 20
MAX_OPEN_LOOP_CONNECTIONS = 512
OK = 200
_NS_PER_MS = 1e6

Say = Callable[[str], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchPlan:
    """What to offer. connections: a closed loop each. rates: an open loop each, requests a second.

    length: of dimensions that vary besides the batch, where inputs are made.
    """

    connections: tuple[int, ...]
    rates: tuple[float, ...]
    rows: int
    seconds: float
    warm_up_s: float
    binary: bool
    length: int = DEFAULT_LENGTH


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The agent to measure, and what is known of it from elsewhere.

    model: of a bundle at hand, with `read`: artifact path -> content. config: of an agent that was
    started here. process: None if it cannot be told.
    """

    address: Address
    name: str
    process: psutil.Process | None = None
    model: Model | None = None
    read: Callable[[str], bytes] | None = None
    config: AgentConfig | None = None


def model_named(address: Address, name: str | None) -> str:
    """Return the name of the model to measure: the given one, or the only one that is served.

    Raises NoAgentError, UnknownModelError, NotReadyError, UsageError if there are several.
    """
    report = get_json(address, "/telemetry")
    names = [model["name"] for model in report["models"]]
    if name is None and len(names) == 1:
        return str(names[0])
    if not names:
        raise NotReadyError(f"{address} serves no model yet: it is {report['phase']}")
    if name is None:
        raise UsageError(f"{address} serves {', '.join(names)}; choose one with --model")
    if name not in names:
        raise UnknownModelError(f"{address} serves no model {name!r}; it has {', '.join(names)}")
    return name


def served_by(subject: Subject) -> Served:
    """Return what answers, from the agent's own report and the bundle at hand."""
    report = get_json(subject.address, "/telemetry")
    model = next(m for m in report["models"] if m["name"] == subject.name)
    config = get_json(subject.address, f"/v2/models/{subject.name}/config")
    joined = config.get("dynamic_batching", {}).get("preferred_batch_size", [1])
    known, settings = subject.model, subject.config
    return Served(
        model=subject.name,
        variant=model["variant"],
        backend=model["backend"],
        precision=model["precision"],
        on_gpu=model["means"] != "ort-cpu",
        max_batch=config["max_batch_size"],
        batch_rows=joined[0],
        cpus=len(os.sched_getaffinity(0)),
        speeds=() if known is None else _speeds(known, model["backend"]),
        bundle_batches=None if known is None else known.batching is not None,
        batching=None if settings is None else settings.batching,
        queue_size=None if settings is None else settings.queue_size,
        batch_window_ms=None if settings is None else settings.batch_window_ms,
        intra_op_threads=None if settings is None else settings.intra_op_threads,
    )


def bench(subject: Subject, plan: BenchPlan, *, say: Say) -> tuple[Point, ...]:
    """Return one Point for each load, in the order of the plan.

    A request is tried first: raises what the agent says of it, before any load.
    """
    requests = _requests(subject, plan)
    try_request(subject.address, requests[0])
    whole = tuple(request.whole() for request in requests)
    process = subject.process or agent_at(subject.address.host, subject.address.port)
    points = []
    for load in _loads(subject.address, whole, plan):
        what = f"{load.connections} connections" if load.rate is None else f"{load.rate:g} a second"
        say(f"{what}: {plan.warm_up_s:g} s of warm-up, {plan.seconds:g} s measured")
        points.append(_point(subject, plan, load, process))
    return tuple(points)


def _loads(address: Address, requests: tuple[bytes, ...], plan: BenchPlan) -> list[Load]:
    pairs = [(connections, None) for connections in plan.connections]
    open_loops = [(MAX_OPEN_LOOP_CONNECTIONS, rate) for rate in plan.rates]
    return [
        Load(
            host=address.host, port=address.port, requests=requests, seconds=plan.seconds,
            connections=connections, rate=rate,
        )
        for connections, rate in (*pairs, *open_loops)
    ]  # fmt: skip


def _requests(subject: Subject, plan: BenchPlan) -> list[HttpRequest]:
    """Return requests with different rows, so that nothing along the way can remember them."""
    config = get_json(subject.address, f"/v2/models/{subject.name}/config")
    most = max(1, config["max_batch_size"])
    if plan.rows > most:
        raise UsageError(f"model {subject.name!r} takes {most} rows a request, not {plan.rows}")
    metadata = get_json(subject.address, f"/v2/models/{subject.name}")
    specs = tuple(_spec(tensor) for tensor in metadata["inputs"])
    rng = np.random.default_rng(0)
    requests: list[HttpRequest] = []
    for number in range(MAX_DISTINCT):
        if subject.model is not None and subject.read is not None:
            feeds = golden_feeds(
                subject.model, subject.read, rows=plan.rows, first=number * plan.rows
            )
        else:
            feeds = made_feeds(specs, rows=plan.rows, length=plan.length, rng=rng)
        request = infer_request(subject.name, feeds, binary=plan.binary)
        request.headers[TEST_HEADER] = "1"
        requests.append(request)
        if len(requests[0].body) * len(requests) > MAX_DISTINCT_BYTES:
            break
    return requests


def _spec(tensor: dict[str, Any]) -> TensorSpec:
    shape = tuple(dim if dim >= 0 else f"axis{axis}" for axis, dim in enumerate(tensor["shape"]))
    return TensorSpec(name=tensor["name"], datatype=tensor["datatype"], shape=shape)


def _speeds(model: Model, backend: str) -> tuple[VariantSpeed, ...]:
    return tuple(
        VariantSpeed(
            id=variant.id, backend=variant.backend, precision=variant.precision,
            measurements=variant.measurements,
        )
        for variant in model.variants
        if variant.backend == backend
    )  # fmt: skip


def _point(subject: Subject, plan: BenchPlan, load: Load, process: psutil.Process | None) -> Point:
    if plan.warm_up_s:
        run_load_in_child(replace(load, seconds=plan.warm_up_s, seed=load.seed + 1))
    stats_path = f"/v2/models/{subject.name}/stats"
    before = get_json(subject.address, stats_path)["model_stats"][0]
    cpu_before = cpu_seconds(process)
    with gpu_watched() as gpu:
        outcome = run_load_in_child(load, started=gpu.clear)
    cpu_after = cpu_seconds(process)
    after = get_json(subject.address, stats_path)["model_stats"][0]
    cpu_s = None if cpu_before is None or cpu_after is None else cpu_after - cpu_before
    return point_from(
        load, plan, outcome, before, after, gpu=gpu, cpu_s=cpu_s, rss=rss_bytes(process)
    )


def point_from(
    load: Load,
    plan: BenchPlan,
    outcome: Outcome,
    before: dict[str, Any],
    after: dict[str, Any],
    *,
    gpu: GpuUse,
    cpu_s: float | None,
    rss: int | None,
) -> Point:
    """Return what a load came to. before, after: entries of `model_stats` around it."""
    runs = _runs(before, after)
    refused = {
        status: latency.answers for status, latency in outcome.latency.items() if status != OK
    }
    slowest = [
        latency.p99_ms or latency.max_ms
        for status, latency in outcome.latency.items()
        if status != OK
    ]
    per_s = outcome.in_time / outcome.seconds
    return Point(
        connections=load.connections if load.rate is None else None,
        offered=load.rate,
        rows=plan.rows,
        binary=plan.binary,
        requests_per_s=per_s,
        rows_per_s=per_s * plan.rows,
        latency=outcome.latency.get(OK),
        refused=refused,
        refused_p99_ms=max(slowest, default=None),
        lost=outcome.lost,
        unanswered=outcome.unanswered,
        wall_s=outcome.elapsed_s,
        runs=runs,
        stages=_stages(before["inference_stats"], after["inference_stats"]),
        usage=Usage(
            engine_share=sum(run.count * run.mean_ms for run in runs) / 1e3 / outcome.elapsed_s,
            gpu_share=gpu.share,
            gpu_memory_bytes=gpu.used_bytes,
            cpu_s=cpu_s,
            rss_bytes=rss,
        ),
        client_share=outcome.client_share,
    )


def _runs(before: dict[str, Any], after: dict[str, Any]) -> tuple[Runs, ...]:
    earlier = {entry["batch_size"]: entry["compute_infer"] for entry in before["batch_stats"]}
    runs = []
    for entry in after["batch_stats"]:
        rows, total = entry["batch_size"], entry["compute_infer"]
        known = earlier.get(rows, {"count": 0, "ns": 0})
        count, ns = total["count"] - known["count"], total["ns"] - known["ns"]
        if count > 0:
            runs.append(Runs(rows=rows, count=count, mean_ms=ns / count / _NS_PER_MS))
    return tuple(runs)


def _stages(before: dict[str, Any], after: dict[str, Any]) -> Stages | None:
    count = after["success"]["count"] - before["success"]["count"]
    if count <= 0:
        return None

    def mean_ms(name: str) -> float:
        return float((after[name]["ns"] - before[name]["ns"]) / count / _NS_PER_MS)

    return Stages(
        parse_ms=mean_ms("compute_input"),
        queue_ms=mean_ms("queue"),
        compute_ms=mean_ms("compute_infer"),
        encode_ms=mean_ms("compute_output"),
    )
