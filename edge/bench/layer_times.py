"""Where the time of a run goes: a model of a bundle opened here, timed layer by layer."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edge.bench.feeds import golden_feeds
from edge.bench.measurements import LayerTimes
from edge.bench.opened import Opened, open_model, reader
from edge.bench.ort_trace import layers_from_file
from edge.bench.trt_layers import layers_of_runs
from edge.bundle import Bundle
from edge.choice import Choice
from edge.config import AgentConfig
from edge.manifest import Model
from edge.ort_session import OrtSession
from edge.session import Session
from edge.spec import Feeds
from edge.tensorrt_library import load_tensorrt
from edge.trt_session import TrtSession

WARM_UP_RUNS = 10


def profile_model(
    bundle: Bundle,
    model: Model,
    config: AgentConfig,
    *,
    rows: int | None,
    runs: int,
    say: Callable[[str], object],
) -> LayerTimes:
    """Return the layer times of the variant that is served here, fed with golden rows.

    rows: of a run; None is what the profile was made for. Whole runs are timed first, without a
    profiler, since one costs time itself. Raises what `open_model` and `Session.run` raise.
    """

    def progress(phase: str, done: int, total: int) -> bool:
        say(f"building an engine: {phase}, step {done} of {total}")
        return True

    opened = open_model(bundle, model, config, progress=progress)
    try:
        feeds = golden_feeds(model, reader(bundle), rows=rows or _usual_rows(model))
        say(f"variant {opened.choice.variant.id}: {runs} runs, then {runs} under the profiler")
        run_ms = _median_ms(opened.session, feeds, runs)
        if isinstance(opened.session, TrtSession):
            return _of_tensorrt(opened, opened.session, feeds, runs, run_ms)
    finally:
        opened.session.close()
    return _of_onnxruntime(bundle, model, config, opened.choice, feeds, runs, run_ms)


def _of_tensorrt(
    opened: Opened, session: TrtSession, feeds: Feeds, runs: int, run_ms: float
) -> LayerTimes:
    variant = opened.choice.variant
    assert variant.backend != "ort"  # noqa: S101 - it was opened by TensorRT
    library = load_tensorrt(variant.backend)
    return LayerTimes(
        where=f"variant {variant.id} ({variant.precision})",
        source=f"IProfiler of TensorRT {library.version}",
        rows=_rows(feeds),
        runs=runs,
        run_ms=run_ms,
        layers=layers_of_runs(session, feeds, runs=runs, trt=library.module),
        backend=variant.backend,
    )


def _of_onnxruntime(
    bundle: Bundle,
    model: Model,
    config: AgentConfig,
    choice: Choice,
    feeds: Feeds,
    runs: int,
    run_ms: float,
) -> LayerTimes:
    variant = choice.variant
    with tempfile.TemporaryDirectory(prefix="edge-profile-") as folder:
        session = OrtSession.open(
            bundle.path(variant.files[0]),
            inputs=model.inputs,
            outputs=model.outputs,
            profile=model.profile,
            intra_op_threads=config.intra_op_threads,
            device=0 if choice.means == "ort-cuda" else None,
            trace_to=Path(folder) / "trace",
        )
        for _ in range(WARM_UP_RUNS + runs):
            session.run(feeds)
        layers = layers_from_file(session.end_trace(), skip_runs=WARM_UP_RUNS)
        session.close()
    return LayerTimes(
        where=f"variant {variant.id} ({variant.precision})",
        source="ONNX Runtime's trace",
        rows=_rows(feeds),
        runs=runs,
        run_ms=run_ms,
        layers=layers,
        backend="ort",
    )


def _median_ms(session: Session, feeds: Feeds, runs: int) -> float:
    for _ in range(WARM_UP_RUNS):
        session.run(feeds)
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        session.run(feeds)
        times.append(1e3 * (time.perf_counter() - started))
    return float(np.median(times))


def _usual_rows(model: Model) -> int:
    if model.max_batch_size == 0:
        return 1
    return min(bounds.opt[0] for bounds in model.profile.ranges.values() if bounds.opt)


def _rows(feeds: Feeds) -> int:
    shape = next(iter(feeds.values())).shape
    return shape[0] if shape else 1
