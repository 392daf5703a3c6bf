"""An existing ONNX file as a source: its Profile, its dimensions, and values to run it with.

The graph is passed on as it is; without its torch module there is nothing to compare it with.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from calibration.model_file import profile_from_model, specs_from_model
from edge.errors import UsageError
from edge.spec import AnyArray, Profile, TensorSpec
from edge.tensor_bytes import tensor_from_strings
from host_tools.shapes import (
    Dims,
    Shapes,
    complete_profile,
    dims_from_profile,
    fixed_profile,
    profile_from_flags,
)
from host_tools.sources import Draw


def profile_from_file(model: onnx.ModelProto, flags: Sequence[str]) -> Profile:
    """Return the Profile of the flags, and for the other inputs the one in the file.

    Raises UsageError for a flag that contradicts a fixed dimension, GraphError for a dimension
    that varies and has no range.
    """
    given = profile_from_flags(flags)
    inputs, _ = specs_from_model(model)
    varying = {spec.name for spec in inputs if any(isinstance(dim, str) for dim in spec.shape)}
    if varying <= given.ranges.keys():
        smallest = {s.name: tuple(d if isinstance(d, int) else 1 for d in s.shape) for s in inputs}
        defaults = fixed_profile(smallest)
    else:
        defaults = profile_from_model(model)
    profile = complete_profile(given, defaults)
    for spec in inputs:
        _check_fixed(spec, profile)
    return profile


def dims_from_file(model: onnx.ModelProto, profile: Profile) -> Dims:
    """Return the dimensions of every input; one that varies keeps its name in the file."""
    inputs, _ = specs_from_model(model)
    dims = dims_from_profile(profile)
    for spec in inputs:
        # specs_from_model calls a dimension without a name after its input and axis.
        dims[spec.name] = tuple(
            ours if isinstance(ours, int) or theirs == f"{spec.name}_{axis}" else theirs
            for axis, (ours, theirs) in enumerate(zip(dims[spec.name], spec.shape, strict=True))
        )
    return dims


def draw_from_file(model: onnx.ModelProto) -> Draw:
    """Return a Draw that knows the dtypes only: normal floats, and 0 and 1 of all else."""
    inputs, _ = specs_from_model(model)

    def draw(rng: np.random.Generator, shapes: Shapes) -> dict[str, AnyArray]:
        feeds: dict[str, AnyArray] = {}
        for spec in inputs:
            shape = shapes[spec.name]
            if spec.datatype == "BYTES":
                feeds[spec.name] = tensor_from_strings(rng.choice(np.array(["0", "1"]), shape))
                continue
            floating = spec.dtype.kind == "f"
            values = rng.standard_normal(shape) if floating else rng.integers(0, 2, shape)
            feeds[spec.name] = np.asarray(values).astype(spec.dtype)
        return feeds

    return draw


def _check_fixed(spec: TensorSpec, profile: Profile) -> None:
    bounds = profile.ranges[spec.name]
    for axis, dim in enumerate(spec.shape):
        if isinstance(dim, int) and (bounds.min[axis], bounds.max[axis]) != (dim, dim):
            raise UsageError(
                f"--shape {spec.name}: axis {axis} is fixed to {dim} in the file, not "
                f"{bounds.min[axis]}..{bounds.max[axis]}; export the model again from its source"
            )
