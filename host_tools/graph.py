"""An exported graph: its dimensions and facts set, checked, and slimmed where that works."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import onnx

from calibration.model_file import MAX_ONE_FILE_BYTES, set_facts
from calibration.processing import Processing, set_processing
from edge.images import ImagePreprocessing
from edge.manifest import Provenance
from edge.spec import Profile
from host_tools.errors import FOREIGN_ERRORS, ExportError, root_cause
from host_tools.shapes import Dims
from host_tools.torch_export import quiet

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphFacts:
    """What the file says about the graph beyond its nodes.

    dims: the dimensions of every input and output, by tensor name. image: how images become the
    input, if that is known. processing: what else is known; None leaves what the graph says.
    """

    dims: Dims
    profile: Profile
    provenance: Provenance
    image: ImagePreprocessing | None = None
    processing: Processing = field(default_factory=Processing)


def finished(graph: onnx.ModelProto, facts: GraphFacts) -> onnx.ModelProto:
    """Return a checked copy with its facts, interface dimensions and inferred shapes.

    Raises ExportError if the graph is not valid ONNX or does not fit one file.
    """
    if graph.ByteSize() >= MAX_ONE_FILE_BYTES:
        raise ExportError(f"the model has {graph.ByteSize()} bytes; one ONNX file holds 2 GB")
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    for value in (*model.graph.input, *model.graph.output):
        _set_dims(value, facts.dims)
    # Inferred again: the exporter's own may use other names for the same dimension.
    del model.graph.value_info[:]
    try:
        onnx.checker.check_model(model, full_check=True)
        model = onnx.shape_inference.infer_shapes(model, check_type=True, data_prop=True)
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the graph is not valid ONNX: {root_cause(error)}") from error
    set_facts(model, facts.profile, facts.provenance, facts.image)
    set_processing(model, facts.processing)
    return model


def slimmed(model: onnx.ModelProto, facts: GraphFacts, *, say: Say) -> onnx.ModelProto | None:
    """Return the model after onnxslim, checked again; None, and a line why, if that fails."""
    import onnxslim

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    try:
        with quiet():
            slim = onnxslim.slim(copy)
        return finished(slim, facts)
    except (*FOREIGN_ERRORS, ExportError) as error:
        say(f"onnxslim failed ({root_cause(error)}); the graph stays as traced")
        return None


def _set_dims(value: onnx.ValueInfoProto, dims: Dims) -> None:
    # Files of old exporters list their weights as inputs too; those keep their shapes.
    if value.name not in dims:
        return
    shape = value.type.tensor_type.shape
    shape.ClearField("dim")
    for dim in dims[value.name]:
        if isinstance(dim, int):
            shape.dim.add(dim_value=dim)
        else:
            shape.dim.add(dim_param=dim)
