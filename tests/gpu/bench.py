"""Our session against polygraphy's TrtRunner on the same engines; one line a batch size.

python -m tests.gpu.bench FOLDER MODEL.PRECISION...
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edge.self_test import relative_error
from edge.tensorrt_library import load_tensorrt
from edge.trt_session import TrtSession
from tests.gpu.shapes import MODELS, profiles

WARM_UP, RUNS = 20, 200
BATCHES = (1, 8, 32)


def main(folder: Path, names: list[str]) -> None:
    library = load_tensorrt("trt")
    print(f"TensorRT {library.version}, p50 / p95 in ms of {RUNS} after {WARM_UP} of warm-up")
    for item in names:
        name = item.split(".")[0]
        interface, arrays = MODELS[name], np.load(folder / f"{name}.npz")
        plan = (folder / f"{item}.engine").read_bytes()
        output = interface.outputs[0].name
        begun = time.perf_counter()
        session = TrtSession.open(
            plan, library=library, inputs=interface.inputs, outputs=interface.outputs,
            profile=interface.profile,
        )  # fmt: skip
        print(f"{item}: opened in {1e3 * (time.perf_counter() - begun):.0f} ms")
        for batch in BATCHES:
            feeds = {
                spec.name: np.ascontiguousarray(arrays[spec.name][:batch])
                for spec in interface.inputs
            }
            error = relative_error(session.run(feeds)[output], arrays[output][:batch])
            index = 0 if batch == 1 else len(profiles(name)) - 1
            with _polygraphy(plan, index) as runner:
                ours, theirs = _alternating(
                    functools.partial(session.run, feeds),
                    functools.partial(runner.infer, _narrow(feeds), check_inputs=False),
                )
            compute, copies = _device_ms(session, feeds)
            staging = _staging_ms(session, feeds)
            print(
                f"  batch {batch:>2}: error {error:.1e} | ours {ours[0]:.3f} / {ours[1]:.3f} | "
                f"polygraphy {theirs[0]:.3f} / {theirs[1]:.3f} | compute {compute:.3f}, "
                f"copies {copies:.3f}, host staging {staging:.3f}, "
                f"rest {ours[0] - compute - copies - staging:.3f}",
                flush=True,
            )
        session.close()


def _polygraphy(plan: bytes, profile: int) -> Any:
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner
    from polygraphy.logger import G_LOGGER

    G_LOGGER.module_severity = G_LOGGER.ERROR
    return TrtRunner(EngineFromBytes(plan), optimization_profile=profile)


def _narrow(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return int64 as int32, which TensorRT 8 computes with."""
    return {
        name: array.astype(np.int32) if array.dtype == np.int64 else array
        for name, array in feeds.items()
    }


def _alternating(*calls: Callable[[], object]) -> list[tuple[float, float]]:
    """Return p50 and p95 in ms of each; they take turns: a disturbance hits all alike."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(WARM_UP + RUNS):
        for call, seen in zip(calls, times, strict=True):
            begun = time.perf_counter()
            call()
            seen.append(1e3 * (time.perf_counter() - begun))
    return [tuple(np.percentile(seen[WARM_UP:], (50, 95))) for seen in times]


def _device_ms(session: TrtSession, feeds: dict[str, np.ndarray]) -> tuple[float, float]:
    """Return the medians of compute and of both copies, by CUDA events."""
    import pycuda.driver as cuda

    plan = session._plan(tuple(feeds[spec.name].shape for spec in session.inputs), 0)
    stream, compute, copies = session._stream, [], []
    context = session._engine.contexts[plan.profile]
    with session.device_context:
        session._engine.use_bank(context, 0)
        session._engine.set_shapes(context, plan.shapes)
        marks = [cuda.Event() for _ in range(4)]
        sent, fetched = (
            [(cuda.pagelocked_empty(staged.shape, staged.dtype), staged.device) for staged in side]
            for side in (plan.feeds, plan.answers)
        )
        for _ in range(RUNS):
            marks[0].record(stream)
            for pinned, device in sent:
                cuda.memcpy_htod_async(device, pinned, stream)
            marks[1].record(stream)
            context.handle.execute_async_v3(stream.handle)
            marks[2].record(stream)
            for pinned, device in fetched:
                cuda.memcpy_dtoh_async(pinned, device, stream)
            marks[3].record(stream)
            marks[3].synchronize()
            compute.append(marks[1].time_till(marks[2]))
            copies.append(marks[0].time_till(marks[1]) + marks[2].time_till(marks[3]))
    return float(np.median(compute)), float(np.median(copies))


def _staging_ms(session: TrtSession, feeds: dict[str, np.ndarray]) -> float:
    """Return the median time of the copies between the caller's arrays and pinned memory."""
    plan = session._plan(tuple(feeds[spec.name].shape for spec in session.inputs), 0)
    times = []
    for _ in range(RUNS):
        begun = time.perf_counter()
        with session.device_context:
            for spec, staged in zip(session.inputs, plan.feeds, strict=True):
                staged.fill(feeds[spec.name], session._stream)
            for spec, staged in zip(session.outputs, plan.answers, strict=True):
                staged.copied_as(spec.dtype, session._outgoing)
        times.append(1e3 * (time.perf_counter() - begun))
    return float(np.median(times))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
