"""Sources: what `edge-kit export` can start from.

"package.module:factory" names a callable without arguments; the current directory is importable.
It returns `(module, example)` or `(module, example, output_names)`:

    module         a torch.nn.Module; it is exported in eval mode
    example        one tensor, a tuple of tensors in the order of forward, or a dict of tensors by
                   parameter name; the dict's keys, or the parameters of forward, name the inputs
    output_names   optional names; otherwise the keys of a dict output, "output", or "output_N"

Test inputs are drawn from the values of the example, so give one with realistic values.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from calibration.processing import Processing
from edge.errors import BackendUnavailableError, EdgeError, UsageError
from edge.spec import AnyArray, datatype_from_numpy
from host_tools.errors import FOREIGN_ERRORS, ExportError, root_cause
from host_tools.shapes import Shapes

if TYPE_CHECKING:
    import torch

SourceKind = Literal["factory", "folder", "onnx"]
Draw = Callable[[np.random.Generator, Shapes], dict[str, AnyArray]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchSource:
    """A model ready to trace, with what is needed to test the result.

    module: made by `positional`; takes its inputs in the order of examples, gives a tuple of
    tensors in the order of output_names. It is in eval mode.
    draw: gives seeded random inputs of the asked shapes, with values the model accepts.
    leader: the input whose shape flag also holds for the inputs without one.
    libraries: installed packages besides torch that the model's code comes from. processing: what
    the source knows of texts, classes and vectors.
    """

    module: torch.nn.Module
    examples: dict[str, AnyArray]
    output_names: tuple[str, ...]
    description: str
    draw: Draw
    leader: str | None = None
    libraries: tuple[str, ...] = ()
    processing: Processing = field(default_factory=Processing)


def kind_of(source: str) -> SourceKind:
    """Return which of the three forms a source has; raises UsageError if it has none."""
    path = Path(source)
    if path.is_dir():
        return "folder"
    if path.suffix == ".onnx" or path.is_file():
        return "onnx"
    module, colon, factory = source.partition(":")
    if colon and factory.isidentifier() and all(p.isidentifier() for p in module.split(".")):
        return "factory"
    raise UsageError(
        f"source {source!r} is no folder, no file and no factory; give package.module:factory, "
        "a Hugging Face model folder, or an .onnx file"
    )


def require(*packages: str) -> None:
    """Raise BackendUnavailableError, with the way to install it, if a package is not there."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise BackendUnavailableError(
                f"{package} is not installed; install it with: pip install 'edge-kit[host]'"
            )


def source_from_factory(spec: str) -> TorchSource:
    """Return the model that "package.module:factory" makes.

    Raises UsageError if there is no such factory, ExportError if it fails or gives something else.
    """
    module, example, names = _made(spec)
    by_name = isinstance(example, Mapping)
    tensors = dict(example) if by_name else _named(module, example)
    examples = {
        name: array_from_tensor(f"{spec}: example {name!r}", t) for name, t in tensors.items()
    }
    keys = tuple(tensors) if by_name else None
    output_names = _output_names(spec, module, tensors, keys)
    if names is not None and len(names) != len(output_names):
        raise ExportError(
            f"{spec} names {len(names)} outputs, the module gives {len(output_names)}"
        )
    return TorchSource(
        module=positional(module, keys, flat_outputs),
        examples=examples,
        output_names=names if names is not None else output_names,
        description=spec,
        draw=draw_like(examples),
    )


def function_at(spec: str) -> Callable[[], Any]:
    """Return the callable that "package.module:name" names; raises UsageError, ExportError."""
    module, _, name = spec.partition(":")
    with _current_directory_importable():
        return _factory(spec, module, name)


def positional(
    module: torch.nn.Module,
    keys: tuple[str, ...] | None,
    outputs: Callable[[Any], tuple[torch.Tensor, ...]],
) -> torch.nn.Module:
    """Return the module behind one calling convention: positional tensors in, a tuple out.

    keys: the parameter names, for a module that is called by keyword.
    """
    import torch

    class Positional(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            if keys is None:
                return outputs(self.inner(*tensors))
            return outputs(self.inner(**dict(zip(keys, tensors, strict=True))))

    return Positional().eval()


def flat_outputs(result: Any) -> tuple[Any, ...]:
    """Return the values of a tensor, tuple, list or dict output in order."""
    if isinstance(result, Mapping):
        return tuple(result.values())
    if isinstance(result, tuple | list):
        return tuple(result)
    return (result,)


def draw_like(examples: Mapping[str, AnyArray]) -> Draw:
    """Return a Draw that resamples the example's own values; constant floats become normal."""

    def draw(rng: np.random.Generator, shapes: Shapes) -> dict[str, AnyArray]:
        feeds = {}
        for name, example in examples.items():
            values = example.reshape(-1)
            if values.dtype.kind == "f" and (values == values[0]).all():
                feeds[name] = rng.standard_normal(shapes[name]).astype(values.dtype)
            else:
                feeds[name] = rng.choice(values, size=shapes[name])
        return feeds

    return draw


def array_from_tensor(what: str, tensor: Any) -> AnyArray:
    """Return a tensor as an array; raises ExportError naming what is no usable tensor."""
    import torch

    if not isinstance(tensor, torch.Tensor):
        raise ExportError(f"{what} is a {type(tensor).__name__}, not a tensor")
    try:
        array = tensor.detach().cpu().numpy()
        datatype_from_numpy(array.dtype)
    except (TypeError, RuntimeError, EdgeError) as error:
        raise ExportError(
            f"{what} has dtype {tensor.dtype}, which no engine takes; use float32 or int64"
        ) from error
    if array.size == 0:
        raise ExportError(f"{what} is empty (shape {list(array.shape)}); give at least one element")
    return np.array(array)


def _made(spec: str) -> tuple[Any, Any, tuple[str, ...] | None]:
    import torch

    factory = function_at(spec)
    with _current_directory_importable():
        try:
            made = factory()
        except FOREIGN_ERRORS as error:
            raise ExportError(f"{spec} failed: {root_cause(error)}") from error
    if not isinstance(made, tuple) or len(made) not in {2, 3}:
        raise ExportError(f"{spec} returned {type(made).__name__}, not (module, example inputs)")
    module, example, names = (*made, None)[:3]
    if not isinstance(module, torch.nn.Module):
        raise ExportError(f"{spec}: {type(module).__name__} is not a torch.nn.Module")
    return module.eval(), example, None if names is None else tuple(names)


def _factory(spec: str, module_name: str, factory_name: str) -> Callable[[], Any]:
    try:
        imported = importlib.import_module(module_name)
    except FOREIGN_ERRORS as error:
        missing = getattr(error, "name", None)
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{missing}."):
            raise UsageError(
                f"no module {missing!r} for {spec}; run in the folder that holds it, or install it"
            ) from error
        raise ExportError(f"importing {module_name} failed: {root_cause(error)}") from error
    factory = getattr(imported, factory_name, None)
    if not callable(factory):
        raise UsageError(f"module {module_name} has no callable {factory_name!r}; see {spec}")
    found: Callable[[], Any] = factory
    return found


@contextlib.contextmanager
def _current_directory_importable() -> Iterator[None]:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _named(module: torch.nn.Module, example: Any) -> dict[str, Any]:
    tensors = tuple(example) if isinstance(example, tuple | list) else (example,)
    kinds = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    parameters = inspect.signature(module.forward).parameters.values()
    names = [p.name for p in parameters if p.kind in kinds][: len(tensors)]
    names += [f"input_{i}" for i in range(len(names), len(tensors))]
    return dict(zip(names, tensors, strict=True))


def _output_names(
    spec: str, module: Any, tensors: dict[str, Any], keys: tuple[str, ...] | None
) -> tuple[str, ...]:
    import torch

    try:
        with torch.no_grad():
            result = module(*tensors.values()) if keys is None else module(**tensors)
    except FOREIGN_ERRORS as error:
        raise ExportError(f"{spec} does not run on its example: {root_cause(error)}") from error
    flat = flat_outputs(result)
    if isinstance(result, Mapping):
        names = tuple(str(key) for key in result)
    else:
        names = ("output",) if len(flat) == 1 else tuple(f"output_{i}" for i in range(len(flat)))
    for name, tensor in zip(names, flat, strict=True):
        array_from_tensor(f"{spec}: output {name!r}", tensor)
    return names
