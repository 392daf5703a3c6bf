"""The original model in PyTorch, for `edge-agent bench --compare --framework`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.errors import InputError
from edge.spec import AnyArray, Feeds, TensorSpec
from host_tools.errors import ExportError
from host_tools.sources import TorchSource, kind_of, require, source_from_factory

if TYPE_CHECKING:
    import torch


class TorchModel:
    """A module in eval mode, on the GPU where torch sees one; a `framework.FrameworkModel`."""

    def __init__(
        self,
        source: TorchSource,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        device: torch.device,
    ) -> None:
        self.on_gpu = device.type != "cpu"
        self._module = source.module.to(device)
        self._device = device
        self._inputs = _matched("inputs", tuple(source.examples), inputs)
        self._outputs = _matched("outputs", source.output_names, outputs)

    def run(self, feeds: Feeds) -> dict[str, AnyArray]:
        """Return every output, on the host."""
        import torch

        with torch.inference_mode():
            tensors = [
                torch.from_numpy(_own(name, feeds[name])).to(self._device) for name in self._inputs
            ]
            results = self._module(*tensors)
            return {
                name: result.cpu().numpy()
                for name, result in zip(self._outputs, results, strict=True)
            }


def torch_source(source: str) -> TorchSource:
    """Return the model of package.module:factory or of a Hugging Face folder."""
    require("torch")
    kind = kind_of(source)
    if kind == "onnx":
        raise ExportError(
            f"{source} is an ONNX file, not the original model; give package.module:factory or a "
            "Hugging Face folder"
        )
    if kind == "factory":
        return source_from_factory(source)
    from pathlib import Path

    from host_tools.hf_source import source_from_folder

    return source_from_folder(Path(source))


def open_torch(
    source: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    threads: int | None,
) -> TorchModel:
    """Open the original of a bundle's model; an entry point of the group edge_kit.framework.

    Raises UsageError, ExportError, BackendUnavailableError.
    """
    found = torch_source(source)
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return TorchModel(found, inputs, outputs, device)


def _matched(what: str, names: tuple[str, ...], specs: tuple[TensorSpec, ...]) -> tuple[str, ...]:
    """Return the bundle's names in the order of the module's: by name, else by place."""
    wanted = tuple(spec.name for spec in specs)
    if set(names) == set(wanted):
        return names
    if len(names) != len(wanted):
        raise ExportError(
            f"the original has the {what} {', '.join(names)}, the bundle's model has "
            f"{', '.join(wanted)}; give the source that it was exported from"
        )
    return wanted


def _own(name: str, array: AnyArray) -> AnyArray:
    if array.dtype.kind == "O":
        raise InputError(f"input {name!r} holds strings, which torch does not take")
    return array if array.flags.writeable and array.flags.c_contiguous else array.copy()
