"""Tensors as JSON lists, flat or nested: checked before anything of their size is allocated."""

from __future__ import annotations

import functools
import math
from types import GenericAlias
from typing import Annotated, Any

import msgspec
import numpy as np

from edge.errors import InputError
from edge.spec import NUMPY_FROM_DATATYPE, AnyArray, Datatype

# INT64 and UINT64 have no upper bound here: msgspec compares bounds as int64, numpy checks them.
_ELEMENT: dict[Datatype, Any] = {
    "BOOL": bool,
    "UINT8": Annotated[int, msgspec.Meta(ge=0, le=2**8 - 1)],
    "UINT16": Annotated[int, msgspec.Meta(ge=0, le=2**16 - 1)],
    "UINT32": Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)],
    "UINT64": Annotated[int, msgspec.Meta(ge=0)],
    "INT8": Annotated[int, msgspec.Meta(ge=-(2**7), le=2**7 - 1)],
    "INT16": Annotated[int, msgspec.Meta(ge=-(2**15), le=2**15 - 1)],
    "INT32": Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)],
    "INT64": int,
    "FP32": float,
    "FP64": float,
}
_SPACE_AND_BRACKET = b" \t\r\n["


def array_from_json(
    name: str, datatype: Datatype, shape: tuple[int, ...], raw: msgspec.Raw
) -> AnyArray:
    """Return the tensor that a JSON list spells, row-major, flat or nested as its shape.

    Raises InputError naming the input if the list has other elements than datatype and shape say,
    or a number that datatype cannot hold.
    """
    text = bytes(raw)
    head = text[: len(text) - len(text.lstrip(_SPACE_AND_BRACKET))]
    depth = head.count(b"[")
    if depth == 0:
        raise InputError(f"input {name!r}: data must be a list")
    if depth not in {1, len(shape)}:
        raise InputError(
            f"input {name!r}: data is nested {depth} deep, its shape {list(shape)} has rank "
            f"{len(shape)}; send it flat or nested like the shape"
        )
    # However nested, n values have n - 1 commas between them; decoding costs 32 bytes a value.
    count, found = math.prod(shape), text.count(b",") + 1
    if found != count:
        raise InputError(
            f"input {name!r}: shape {list(shape)} needs {count} values, data has {found}"
        )
    try:
        values = _decoder(datatype, depth).decode(text)
        array = _array(values, datatype)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InputError(f"input {name!r}: data is not a list of {datatype}: {error}") from error
    except (OverflowError, FloatingPointError) as error:
        raise InputError(f"input {name!r}: a number is out of the range of {datatype}") from error
    except ValueError as error:
        raise InputError(f"input {name!r}: nested lists differ in length") from error
    if array.size != count or (depth > 1 and array.shape != shape):
        raise InputError(
            f"input {name!r}: shape {list(shape)} needs {count} values, data has {array.size}"
            + (f" in the shape {list(array.shape)}" if depth > 1 else "")
        )
    return array.reshape(shape)


def list_from_array(name: str, array: AnyArray) -> list[Any]:
    """Return the values as a flat list.

    Raises InputError if there is a NaN or an infinity among them: JSON has no spelling for it.
    """
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(
            f"output {name!r} holds NaN or an infinity, which JSON cannot carry; ask for it with "
            "binary_data to see the values"
        )
    values: list[Any] = array.ravel().tolist()
    return values


@functools.cache
def _decoder(datatype: Datatype, depth: int) -> msgspec.json.Decoder[Any]:
    kind = _ELEMENT[datatype]
    for _ in range(depth):
        kind = GenericAlias(list, (kind,))
    return msgspec.json.Decoder(kind)


def _array(values: list[Any], datatype: Datatype) -> AnyArray:
    dtype = NUMPY_FROM_DATATYPE[datatype]
    if datatype != "FP32":
        return np.array(values, dtype=dtype)
    with np.errstate(over="raise"):
        return np.array(values, dtype=np.float64).astype(dtype)
