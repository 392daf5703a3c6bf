"""Where the time of the original torch module goes, operator by operator."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.bench.measurements import Layer, LayerTimes
from edge.spec import AnyArray
from host_tools.errors import FOREIGN_ERRORS, ExportError, root_cause
from host_tools.framework import torch_source

if TYPE_CHECKING:
    import torch

WARM_UP_RUNS = 5
_ATEN = "aten::"
_MS_PER_US = 1e-3
_PRECISION = {"torch.float32": "fp32", "torch.float16": "fp16", "torch.bfloat16": "bf16"}


def profile_source(source: str, *, rows: int, runs: int, threads: int | None) -> LayerTimes:
    """Return the operators of a factory's module or of a Hugging Face folder, by torch.profiler.

    rows: of a run, made from the values of the example. Times are an operator's own, without what
    it called: of the GPU where the module runs on one, else of the CPU. Raises ExportError if the
    module does not run.
    """
    found = torch_source(source)
    import torch
    from torch.profiler import ProfilerActivity

    if threads is not None:
        torch.set_num_threads(threads)
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    module = found.module.to(device)
    shapes = {name: (rows, *array.shape[1:]) for name, array in found.examples.items()}
    feeds = found.draw(np.random.default_rng(0), shapes)
    tensors = [torch.from_numpy(_owned(feeds[name])).to(device) for name in found.examples]

    def run() -> None:
        module(*tensors)
        if on_gpu:
            torch.cuda.synchronize()

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.inference_mode():
        try:
            for _ in range(WARM_UP_RUNS):
                run()
        except FOREIGN_ERRORS as error:
            raise ExportError(
                f"{source} does not run on {rows} rows: {root_cause(error)}; give another --rows"
            ) from error
        times = []
        for _ in range(runs):
            started = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - started))
        with torch.profiler.profile(activities=activities, record_shapes=True) as profiler:
            for _ in range(runs):
                run()
    return LayerTimes(
        where=f"{source} on the {'GPU' if on_gpu else 'CPU'}",
        source=f"torch.profiler of torch {torch.__version__}",
        rows=rows,
        runs=runs,
        run_ms=float(np.median(times)),
        layers=layers_from_events(
            profiler.key_averages(group_by_input_shape=True),
            runs=runs,
            on_gpu=on_gpu,
            precision=_precision(module),
        ),
    )


def layers_from_events(
    events: Any, *, runs: int, on_gpu: bool, precision: str
) -> tuple[Layer, ...]:
    """Return one Layer for each operator and input shape that took time of its own.

    events: torch's FunctionEventAvg, of so many runs. precision: of the module's weights.
    """
    layers = []
    for event in events:
        own_us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if own_us <= 0 or not event.key.startswith(_ATEN):
            continue
        kind = event.key.removeprefix(_ATEN)
        given = [shape for shape in event.input_shapes or () if shape][:2]
        shapes = ["x".join(map(str, shape)) for shape in given]
        layers.append(
            Layer(
                name=" ".join([kind, *shapes]),
                kind=kind,
                precision=precision,
                mean_ms=own_us * _MS_PER_US / runs,
            )
        )
    return tuple(layers)


def _precision(module: torch.nn.Module) -> str:
    weights = next(module.parameters(), None)
    return "?" if weights is None else _PRECISION.get(str(weights.dtype), str(weights.dtype))


def _owned(array: AnyArray) -> AnyArray:
    return np.array(array)
