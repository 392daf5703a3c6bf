"""Layer times from TensorRT's profiler, joined with what its inspector tells of each layer."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from edge.bench.measurements import Layer
from edge.spec import Feeds
from edge.trt_engine import precision_of_layer
from edge.trt_session import TrtSession

_UNKNOWN = "?"
_CONSTANT = "Constant"


def layers_of_runs(session: TrtSession, feeds: Feeds, *, runs: int, trt: Any) -> tuple[Layer, ...]:
    """Return every layer with the mean time it took in a run, in the order of the engine.

    trt: the module tensorrt or tensorrt_rtx, which made the session.
    """

    class Profiler(trt.IProfiler):  # type: ignore[misc] # untyped
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.total_ms: dict[str, float] = defaultdict(float)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.total_ms[layer_name] += ms

    profiler = Profiler()
    for _ in range(runs):
        session.run_profiled(feeds, profiler)
    return layers_from_times(profiler.total_ms, session.layer_details(), runs=runs)


def layers_from_times(
    total_ms: dict[str, float], details: list[dict[str, Any]], *, runs: int
) -> tuple[Layer, ...]:
    """Return the layers of so many runs; details: of TensorRT's inspector, by "Name".

    Constants are left out: they were computed when the engine was opened, and a run takes 0 ms.
    """
    known = {str(layer.get("Name")): layer for layer in details}
    layers = []
    for name, ms in total_ms.items():
        layer = known.get(name)
        kind = _UNKNOWN if layer is None else str(layer.get("LayerType", _UNKNOWN))
        if kind == _CONSTANT:
            continue
        precision = _UNKNOWN if layer is None else _precision(layer)
        layers.append(Layer(name=name, kind=kind, precision=precision, mean_ms=ms / runs))
    return tuple(layers)


def _precision(layer: dict[str, Any]) -> str:
    if not layer.get("Inputs"):
        return _UNKNOWN
    return precision_of_layer({**layer, "LayerType": ""})
