"""ONNX files: load, check, save, and the facts that travel inside them.

The export writes the Profile and the provenance into the model's metadata, so that one file
carries everything from `export` through `calibrate` to `pack`; quantization keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import TypeVar

import msgspec
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from calibration.errors import GraphError
from edge.errors import UsageError
from edge.files import atomic_write
from edge.images import ImagePreprocessing, problem_with
from edge.manifest import Provenance
from edge.spec import Datatype, Dim, Profile, ShapeRange, TensorSpec

PROFILE_KEY = "edge_kit.profile"
PROVENANCE_KEY = "edge_kit.provenance"
IMAGE_KEY = "edge_kit.image"
MAX_ONE_FILE_BYTES = 2_000_000_000

_DATATYPE_FROM_ONNX: dict[int, Datatype] = {
    TensorProto.BOOL: "BOOL",
    TensorProto.UINT8: "UINT8",
    TensorProto.UINT16: "UINT16",
    TensorProto.UINT32: "UINT32",
    TensorProto.UINT64: "UINT64",
    TensorProto.INT8: "INT8",
    TensorProto.INT16: "INT16",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.FLOAT16: "FP16",
    TensorProto.FLOAT: "FP32",
    TensorProto.DOUBLE: "FP64",
    TensorProto.STRING: "BYTES",
}
_T = TypeVar("_T")


def load_model(path: Path) -> onnx.ModelProto:
    """Return the model with its weights in memory.

    Raises UsageError if there is no such file, GraphError if it is not a valid ONNX model.
    """
    if not path.is_file():
        raise UsageError(f"no model at {path}; give an .onnx file")
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "not protobuf"
        raise GraphError(f"{path} is not a valid ONNX model: {reason}; export it again") from error
    return model


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """Write the model as one file, atomically; raises GraphError if it is 2 GB or larger."""
    size = model.ByteSize()
    if size >= MAX_ONE_FILE_BYTES:
        raise GraphError(f"{path}: {size} bytes do not fit one ONNX file (2 GB)")
    atomic_write(path, model.SerializeToString())


def specs_from_model(
    model: onnx.ModelProto,
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return (inputs, outputs) of the graph; initializers are not inputs."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(_spec(value) for value in model.graph.input if value.name not in weights)
    return inputs, tuple(_spec(value) for value in model.graph.output)


def profile_from_model(model: onnx.ModelProto) -> Profile:
    """Return the Profile that the export wrote; fixed shapes only need none.

    Raises GraphError if an input has a varying dimension and the file carries no Profile, or one
    that contradicts the graph.
    """
    stored = stored_metadata(model, PROFILE_KEY, Profile)
    if stored is not None:
        for spec in specs_from_model(model)[0]:
            _check_profile(spec, stored.ranges.get(spec.name))
        return stored
    ranges = {}
    for spec in specs_from_model(model)[0]:
        shape = tuple(dim for dim in spec.shape if isinstance(dim, int))
        if len(shape) != len(spec.shape):
            raise GraphError(
                f"input {spec.name!r} has the shape {list(spec.shape)} and the model carries no "
                f"profile; pass it through `edge-kit export FILE.onnx --shape {spec.name}="
                "MIN:OPT:MAX`"
            )
        ranges[spec.name] = ShapeRange(min=shape, opt=shape, max=shape)
    return Profile(ranges=ranges)


def provenance_from_model(model: onnx.ModelProto) -> Provenance:
    """Return how the model was exported, or what its file alone can tell."""
    stored = stored_metadata(model, PROVENANCE_KEY, Provenance)
    if stored is not None:
        return stored
    tool = f"{model.producer_name} {model.producer_version}".strip()
    return Provenance(source="onnx", opset=opset_of(model), exporter=tool or "unknown", tools={})


def image_from_model(model: onnx.ModelProto) -> ImagePreprocessing | None:
    """Return how images become the model's input, if its export said so.

    Raises GraphError for steps that do not fit the graph.
    """
    steps = stored_metadata(model, IMAGE_KEY, ImagePreprocessing)
    if steps is not None:
        problem = problem_with(steps, specs_from_model(model)[0], profile_from_model(model))
        if problem is not None:
            raise GraphError(f"metadata {IMAGE_KEY}: {problem}; export again")
    return steps


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of the default operator set."""
    return next((o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}), 0)


def set_facts(
    model: onnx.ModelProto,
    profile: Profile,
    provenance: Provenance,
    image: ImagePreprocessing | None = None,
) -> None:
    """Write the facts into the model's metadata, replacing earlier ones; see `edge.images`."""
    facts: dict[str, object] = {PROFILE_KEY: profile, PROVENANCE_KEY: provenance}
    if image is not None:
        facts[IMAGE_KEY] = image
    set_metadata(model, facts, remove={IMAGE_KEY})


def set_metadata(
    model: onnx.ModelProto, facts: Mapping[str, object], *, remove: Set[str] = frozenset()
) -> None:
    """Write facts as JSON into the model's metadata, in place of those of their keys."""
    gone = {*facts, *remove}
    kept = [entry for entry in model.metadata_props if entry.key not in gone]
    added = [
        onnx.StringStringEntryProto(key=key, value=msgspec.json.encode(value).decode())
        for key, value in facts.items()
    ]
    del model.metadata_props[:]
    model.metadata_props.extend([*kept, *added])


def stored_metadata(model: onnx.ModelProto, key: str, kind: type[_T]) -> _T | None:
    """Return one fact from the model's metadata, None if it has none; raises GraphError."""
    for entry in model.metadata_props:
        if entry.key == key:
            try:
                return msgspec.json.decode(entry.value, type=kind)
            except msgspec.MsgspecError as error:
                raise GraphError(f"metadata {key} is malformed: {error}; export again") from error
    return None


def _check_profile(spec: TensorSpec, bounds: ShapeRange | None) -> None:
    fits = bounds is not None and all(
        len(shape) == len(spec.shape)
        and all(isinstance(d, str) or d == n for d, n in zip(spec.shape, shape, strict=True))
        for shape in (bounds.min, bounds.opt, bounds.max)
    )
    if not fits:
        raise GraphError(
            f"input {spec.name!r} has the shape {list(spec.shape)}, the profile in the file says "
            f"{bounds}; the graph was changed after its export, export it again"
        )


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    datatype = _DATATYPE_FROM_ONNX.get(tensor.elem_type)
    if datatype is None:
        kind = TensorProto.DataType.Name(tensor.elem_type) if tensor.elem_type else "no tensor"
        raise GraphError(f"tensor {value.name!r} is of type {kind}, which cannot be served")
    dims: list[Dim] = []
    for axis, dim in enumerate(tensor.shape.dim):
        if dim.HasField("dim_value") and dim.dim_value == 0:
            raise GraphError(
                f"tensor {value.name!r} has the size 0 on axis {axis}; export it again"
            )
        if dim.dim_value > 0:
            dims.append(dim.dim_value)
        else:  # some exporters write -1 for a dimension that varies
            dims.append(dim.dim_param or f"{value.name}_{axis}")
    return TensorSpec(name=value.name, datatype=datatype, shape=tuple(dims))
