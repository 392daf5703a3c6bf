"""Layer times from the trace that ONNX Runtime writes when it is asked to profile."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec

from edge.bench.measurements import Layer
from edge.errors import InferenceError
from edge.files import read_capped

MAX_TRACE_BYTES = 1 << 30
_KERNEL = "_kernel_time"
_RUN = "model_run"
_INT8 = frozenset({"int8", "uint8"})
_PRECISION = {"float": "fp32", "float16": "fp16", "double": "fp64", "bfloat16": "bf16"}


class _Event(msgspec.Struct, frozen=True):
    name: str
    ts: float = 0.0
    dur: float = 0.0
    cat: str = ""
    args: dict[str, Any] = {}


def layers_from_trace(content: bytes, *, skip_runs: int) -> tuple[Layer, ...]:
    """Return every node with the mean time it took in a run, in the order they ran.

    content: a JSON list of events in the Trace Event Format, times in microseconds. skip_runs: of
    the first runs, which are warm-up. Raises InferenceError if it is no such trace.
    """
    try:
        events = msgspec.json.decode(content, type=list[_Event])
    except msgspec.MsgspecError as error:
        raise InferenceError(f"ONNX Runtime's trace cannot be read: {error}") from error
    begins = sorted(event.ts for event in events if event.name == _RUN)[skip_runs:]
    if not begins:
        raise InferenceError("ONNX Runtime's trace holds no run that counts")
    times: dict[str, float] = defaultdict(float)
    facts: dict[str, dict[str, Any]] = {}
    for event in events:
        if event.cat == "Node" and event.name.endswith(_KERNEL) and event.ts >= begins[0]:
            name = event.name.removesuffix(_KERNEL)
            times[name] += event.dur
            facts.setdefault(name, event.args)
    return tuple(
        Layer(
            name=name,
            kind=str(facts[name].get("op_name", "?")),
            precision=_precision(facts[name]),
            mean_ms=us / len(begins) / 1e3,
        )
        for name, us in times.items()
    )


def layers_from_file(path: Path, *, skip_runs: int) -> tuple[Layer, ...]:
    """Return the layers of a trace file; see `layers_from_trace`."""
    return layers_from_trace(read_capped(path, max_bytes=MAX_TRACE_BYTES), skip_runs=skip_runs)


def _precision(args: dict[str, Any]) -> str:
    """Return what a node computes in: int8 if an input is, else the type of the first input."""
    types = [kind for tensor in args.get("input_type_shape", ()) for kind in tensor]
    if args.get("op_name") in {"QuantizeLinear", "DequantizeLinear"}:
        return "int8"
    if any(kind in _INT8 for kind in types[:1] or ["?"]):
        return "int8"
    first = types[0] if types else "?"
    return _PRECISION.get(first, first)
