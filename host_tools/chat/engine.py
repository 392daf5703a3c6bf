"""From a chat graph to what TensorRT needs: which form, fixed capacities, optimisation profiles.

TensorRT-RTX and TensorRT from 10.15 on keep the cache where it is: "scatter", with a capacity that
is part of the engine. Older ones cannot, and read a "prefix" of the runner's buffer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx

from edge.chat.spec import DecoderSpec, Form
from edge.errors import UsageError
from edge.files import atomic_write
from edge.manifest import Precision
from edge.spec import Profile, ShapeRange
from edge.tensorrt_library import TensorRtBackend
from host_tools.chat.writer import WriteOptions, write_decoder

SCATTER_SINCE = (10, 15)
INT4_SINCE = (10, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineShapes:
    """How large a chat engine is.

    lanes: that a step runs at most. capacity: positions of a lane's cache. chunk: tokens of a lane
    that a step takes. wanted: tokens of a lane whose logits a step of several tokens gives, such
    as those of a draft and the one behind it.
    """

    lanes: int = 1
    capacity: int
    chunk: int = 512
    wanted: int = 16


def forms_for(
    backend: TensorRtBackend, version: tuple[int, int], precision: Precision
) -> tuple[Form, ...]:
    """Return the forms that this TensorRT may build, the best one first.

    Raises UsageError if it has no such weights. Fused attention has no kernels for FP32, nor
    for all that FP16 may be, such as one head of keys; the primitive operators have.
    """
    is_rtx = backend == "trt-rtx"
    if precision == "int4" and not is_rtx and version < INT4_SINCE:
        raise UsageError(
            f"TensorRT {version[0]}.{version[1]} has no int4 weights, they came with 10.0; give "
            "--precision fp16"
        )
    if not is_rtx and version < SCATTER_SINCE:
        return ("prefix",)
    if precision == "fp32":
        return ("scatter-primitive",)
    return ("scatter", "scatter-primitive")


def write_engine_graph(
    folder: Path,
    out: Path,
    *,
    form: Form,
    precision: Precision,
    shapes: EngineShapes,
    adapters: tuple[Path, ...] = (),
    say: Callable[[str], None] = lambda line: None,
) -> DecoderSpec:
    """Write the graph of a Hugging Face folder as an engine is built from it; return its spec.

    Activations and cache are FP16 unless precision is "fp32"; sums of norms, and logits, are FP32.
    """
    options = WriteOptions(
        form=form,
        weights=precision,
        context=shapes.capacity,
        half=precision != "fp32",
        adapters=adapters,
    )
    written = write_decoder(folder, out, options, say=say)
    model = onnx.load(str(out), load_external_data=False)
    fix_shapes(model, shapes)
    atomic_write(out, model.SerializeToString())
    return written.decoder


def fix_shapes(model: onnx.ModelProto, shapes: EngineShapes) -> None:
    """Make the capacity a number, for TensorRT updates no cache whose size it does not know.

    One lane is fixed too: kernels for a batch of one are others than those for a range.
    """
    sizes = {"capacity": shapes.capacity}
    if shapes.lanes == 1:
        sizes["lanes"] = 1
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]


def engine_profiles(model: onnx.ModelProto, shapes: EngineShapes) -> tuple[Profile, Profile]:
    """Return the optimisation profiles of a fixed graph: for a token a lane, and for more."""
    step = {"lanes": (1, 1, shapes.lanes), "tokens": (1, 1, 1), "wanted": (1, 1, 1)}
    chunk = min(shapes.chunk, shapes.capacity)
    prefill = {
        "lanes": (1, 1, shapes.lanes),
        "tokens": (1, chunk, chunk),
        "wanted": (1, 1, min(shapes.wanted, chunk)),
    }
    held = {
        "prefix": (1, max(1, shapes.capacity // 2), shapes.capacity),
        "past": (0, shapes.capacity // 2, shapes.capacity - 1),
    }
    return _profile(model, step | held), _profile(model, prefill | held)


def _profile(model: onnx.ModelProto, sizes: dict[str, tuple[int, int, int]]) -> Profile:
    ranges = {}
    for value in model.graph.input:
        dims = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if any(isinstance(dim, str) for dim in dims):
            smallest, usual, largest = (
                tuple(sizes[dim][i] if isinstance(dim, str) else dim for dim in dims)
                for i in range(3)
            )
            ranges[value.name] = ShapeRange(min=smallest, opt=usual, max=largest)
    return Profile(ranges=ranges)
