"""Tensors as JSON lists, flat or nested: checked before anything of their size is allocated.

An element of BYTES is a JSON string, its bytes those of UTF-8.
"""

from __future__ import annotations

import functools
import math
from types import GenericAlias
from typing import Annotated, Any

import msgspec
import numpy as np

from edge.errors import InputError
from edge.spec import NUMPY_FROM_DATATYPE, AnyArray, Datatype
from edge.tensor_bytes import tensor_from_strings

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
    "BYTES": str,
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
    count, found = math.prod(shape), _commas(text, datatype) + 1
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
    except UnicodeError as error:
        raise InputError(f"input {name!r}: a string is no UTF-8: {error}") from error
    except ValueError as error:
        raise InputError(f"input {name!r}: nested lists differ in length") from error
    if array.size != count or (depth > 1 and array.shape != shape):
        raise InputError(
            f"input {name!r}: shape {list(shape)} needs {count} values, data has {array.size}"
            + (f" in the shape {list(array.shape)}" if depth > 1 else "")
        )
    return tensor_from_strings(array.reshape(shape))


def list_from_array(name: str, array: AnyArray) -> list[Any]:
    """Return the values as a flat list.

    Raises InputError for what JSON has no spelling for: NaN, infinities, strings that are no UTF-8.
    """
    if array.dtype.kind == "O":
        try:
            return [value.decode() for value in array.ravel().tolist()]
        except UnicodeDecodeError as error:
            raise InputError(
                f"output {name!r} holds bytes that are no UTF-8, which JSON cannot carry; ask for "
                "it with binary_data"
            ) from error
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(
            f"output {name!r} holds NaN or an infinity, which JSON cannot carry; ask for it with "
            "binary_data to see the values"
        )
    values: list[Any] = array.ravel().tolist()
    return values


def _commas(text: bytes, datatype: Datatype) -> int:
    """Return how many commas stand outside of strings, without an object for each of them."""
    if datatype != "BYTES":
        return text.count(b",")
    codes = np.frombuffer(text.replace(b"\\\\", b"").replace(b'\\"', b""), np.uint8)
    is_inside = np.logical_xor.accumulate(codes == ord('"'))
    return int(np.count_nonzero((codes == ord(",")) & ~is_inside))


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
