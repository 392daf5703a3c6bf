"""What a model takes and gives: tensor specs, optimisation profiles, and the check of feeds.

Datatypes carry their Open Inference Protocol names everywhere in the kit ("FP32", "INT64", ...).
BYTES, a tensor of strings, is a numpy object array of `bytes`; see `tensor_bytes`.
A dimension is an int, or a name such as "batch" for one that varies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edge.errors import InputError

AnyArray = npt.NDArray[Any]
Feeds = Mapping[str, AnyArray]
Dim = int | str
Datatype = Literal[
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "BYTES",
]

NUMPY_FROM_DATATYPE: Mapping[Datatype, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(np.object_),
}
_DATATYPE_FROM_NUMPY = {dtype: name for name, dtype in NUMPY_FROM_DATATYPE.items()}


def datatype_from_numpy(dtype: np.dtype[Any]) -> Datatype:
    """Return the protocol name of a numpy dtype.

    Raises InputError for a dtype that no engine takes (complex numbers, fixed-width strings).
    """
    name = _DATATYPE_FROM_NUMPY.get(dtype.newbyteorder("<"))
    if name is None:
        known = ", ".join(str(d) for d in _DATATYPE_FROM_NUMPY)
        raise InputError(f"dtype {dtype} has no tensor datatype; convert to one of {known}")
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """Name, datatype and shape of one input or output; named dimensions vary per request."""

    name: str
    datatype: Datatype
    shape: tuple[Dim, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy dtype, little-endian; that of objects for BYTES."""
        return NUMPY_FROM_DATATYPE[self.datatype]

    @property
    def wire_shape(self) -> list[int]:
        """The shape as the Open Inference Protocol writes it: -1 for a dimension that varies."""
        return [dim if isinstance(dim, int) else -1 for dim in self.shape]


@dataclass(frozen=True, slots=True, kw_only=True)
class StatePair:
    """An input that takes what an output gave in the run before; neither leaves the device.

    input: of fixed shape, zeros before the first run. output: the name of the other.
    """

    input: TensorSpec
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeRange:
    """Smallest, most frequent and largest shape of one input."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One ShapeRange per input: what a build optimises for and what a request may ask."""

    ranges: dict[str, ShapeRange]


def name_of_strings(*specs: TensorSpec) -> str | None:
    """Return the first tensor that holds strings; TensorRT has none."""
    return next((spec.name for spec in specs if spec.datatype == "BYTES"), None)


def check_feeds(feeds: Feeds, specs: tuple[TensorSpec, ...], profile: Profile) -> None:
    """Raise InputError unless feeds match the specs and lie inside the profile.

    Checks names, dtypes, ranks, fixed dimensions, profile bounds, and that a named dimension
    has one value over all inputs. Touches no device and copies nothing.
    """
    for name, array in feeds.items():
        datatype = _DATATYPE_FROM_NUMPY.get(array.dtype, str(array.dtype))
        check_tensor(name, datatype, array.shape, specs, profile)
    check_together(feeds, specs)


def check_together(feeds: Feeds, specs: tuple[TensorSpec, ...]) -> None:
    """Raise InputError unless tensors that were checked one by one make a whole request."""
    bound: dict[str, tuple[int, str]] = {}
    for spec in specs:
        feed = feeds.get(spec.name)
        if feed is None:
            raise InputError(f"input {spec.name!r} is missing; the model takes {_names(specs)}")
        for dim, size in zip(spec.shape, feed.shape, strict=True):
            if isinstance(dim, int):
                continue
            seen, where = bound.setdefault(dim, (size, spec.name))
            if seen != size:
                raise InputError(
                    f"input {spec.name!r}: dimension {dim!r} is {size}, but {seen} in input "
                    f"{where!r}; send both with the same size"
                )


def check_tensor(
    name: str,
    datatype: str,
    shape: tuple[int, ...],
    specs: tuple[TensorSpec, ...],
    profile: Profile,
) -> None:
    """Raise InputError unless an input of this name may have this datatype and shape."""
    spec = next((spec for spec in specs if spec.name == name), None)
    if spec is None:
        raise InputError(f"input {name!r} is unknown; the model takes {_names(specs)}")
    if datatype != spec.datatype:
        raise InputError(
            f"input {name!r}: datatype is {datatype}, the model takes {spec.datatype}; "
            "convert before sending"
        )
    if len(shape) != len(spec.shape):
        raise InputError(
            f"input {name!r}: got rank {len(shape)} (shape {list(shape)}), the model "
            f"takes rank {len(spec.shape)} (shape {spec.wire_shape})"
        )
    bounds = profile.ranges.get(name)
    for axis, (size, dim) in enumerate(zip(shape, spec.shape, strict=True)):
        low, high = (dim, dim) if isinstance(dim, int) else (1, None)
        if bounds is not None and not isinstance(dim, int):
            low, high = bounds.min[axis], bounds.max[axis]
        if size < low or (high is not None and size > high):
            accepted = f"{low}" if low == high else f"{low}..{'' if high is None else high}"
            raise InputError(
                f"input {name!r}: shape {list(shape)} has {size} on axis {axis}, the "
                f"model accepts {accepted}; resize, or export with a wider --shape"
            )


def _names(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(repr(spec.name) for spec in specs)
