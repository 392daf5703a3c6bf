"""From a torch module to an ONNX graph, through one of torch's two exporters.

The legacy exporter traces and reaches opset 17, the highest that TensorRT 8 reads; the dynamo
exporter starts at opset 18 and silently ignores a lower wish, so the opset decides which one runs.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import onnx

from calibration.model_file import opset_of
from edge.spec import AnyArray, Feeds
from host_tools.errors import FOREIGN_ERRORS, ExportError, root_cause
from host_tools.shapes import Dims, shapes_text
from host_tools.sources import TorchSource, array_from_tensor

if TYPE_CHECKING:
    import torch

Exporter = Literal["torch-legacy", "torch-dynamo"]
LAST_LEGACY_OPSET = 17


def exporter_for(opset: int) -> Exporter:
    """Return the exporter that can write this opset."""
    return "torch-legacy" if opset <= LAST_LEGACY_OPSET else "torch-dynamo"


def graph_from_torch(
    source: TorchSource, feeds: Feeds, dims: Dims, *, opset: int
) -> onnx.ModelProto:
    """Return the traced graph, weights inside.

    feeds: what to trace with; every varying dimension should be larger than 1 in it.
    Raises ExportError with the reason if the exporter fails or writes another opset.
    """
    exporter = exporter_for(opset)
    export = _legacy if exporter == "torch-legacy" else _dynamo
    try:
        with quiet():
            model = export(source, _tensors(source, feeds), dims, opset)
    except FOREIGN_ERRORS as error:
        raise ExportError(
            f"{source.description}: {exporter} cannot export it with opset {opset}: "
            f"{root_cause(error)}; {_try_next(exporter)}"
        ) from error
    if opset_of(model) != opset:
        raise ExportError(
            f"{source.description}: {exporter} wrote opset {opset_of(model)} instead of {opset}; "
            f"{_try_next(exporter)}"
        )
    return model


def run_torch(source: TorchSource, feeds: Feeds) -> dict[str, AnyArray]:
    """Return the outputs of the module; raises ExportError naming the shapes if it fails."""
    import torch

    at = shapes_text({name: array.shape for name, array in feeds.items()})
    try:
        with torch.no_grad():
            outputs = source.module(*_tensors(source, feeds))
    except FOREIGN_ERRORS as error:
        raise ExportError(
            f"{source.description} fails in torch at {at}: {root_cause(error)}; "
            "give --shape only sizes the model takes"
        ) from error
    if len(outputs) != len(source.output_names):
        raise ExportError(
            f"{source.description} gives {len(outputs)} outputs at {at} and "
            f"{len(source.output_names)} on its example; a graph has one number of them"
        )
    return {
        name: array_from_tensor(f"output {name!r} at {at}", output)
        for name, output in zip(source.output_names, outputs, strict=True)
    }


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings, log lines and prints of a library inside the block, not its exceptions."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _legacy(
    source: TorchSource, tensors: tuple[torch.Tensor, ...], dims: Dims, opset: int
) -> onnx.ModelProto:
    import torch

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            source.module,
            tensors,
            path,
            dynamo=False,
            opset_version=opset,
            input_names=list(source.examples),
            output_names=list(source.output_names),
            dynamic_axes={
                name: {axis: dim for axis, dim in enumerate(axes) if isinstance(dim, str)}
                for name, axes in dims.items()
            },
        )
        return onnx.load(str(path))


def _dynamo(
    source: TorchSource, tensors: tuple[torch.Tensor, ...], dims: Dims, opset: int
) -> onnx.ModelProto:
    import torch

    varies: Any = torch.export.Dim.DYNAMIC
    program = torch.onnx.export(
        source.module,
        tensors,
        dynamo=True,
        opset_version=opset,
        input_names=list(source.examples),
        output_names=list(source.output_names),
        # One entry for the module's only parameter, *tensors.
        dynamic_shapes=(
            tuple(
                {axis: varies for axis, dim in enumerate(dims[name]) if isinstance(dim, str)}
                for name in source.examples
            ),
        ),
        external_data=False,
    )
    if program is None:
        raise RuntimeError("the exporter returned no program")
    free_interface_names(program.model.graph)
    return program.model_proto


def free_interface_names(graph: Any) -> None:
    """Rename inner values that have the name of an input or output.

    torch 2.13 names inner values after operators ("embedding", "mul") and sets the names of
    inputs and outputs without looking for a clash.
    """
    interface = [*graph.inputs, *graph.outputs]
    names = {value.name for value in interface}
    for node in graph.all_nodes():
        for value in node.outputs:
            if value.name in names and not any(value is own for own in interface):
                value.name = f"{value.name}_inner"


def _tensors(source: TorchSource, feeds: Feeds) -> tuple[torch.Tensor, ...]:
    import torch

    return tuple(torch.from_numpy(feeds[name].copy()) for name in source.examples)


def _try_next(exporter: Exporter) -> str:
    if exporter == "torch-legacy":
        return "try the other exporter: --opset 18 (needs a target that reads it)"
    return f"try the other exporter: --opset {LAST_LEGACY_OPSET}"
