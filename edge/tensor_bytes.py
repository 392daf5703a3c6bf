"""Tensors as bytes, as the Open Inference Protocol sends them and golden files keep them.

Numbers are little-endian, row-major, without padding. A BYTES tensor is a numpy object array of
`bytes`; each element becomes its length, four bytes little-endian, and then itself.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Sequence

import numpy as np

from edge.errors import InputError
from edge.spec import NUMPY_FROM_DATATYPE, AnyArray, Datatype, datatype_from_numpy

_LENGTH = struct.Struct("<I")


def bytes_from_tensor(array: AnyArray) -> bytes:
    """Return a tensor's bytes; the elements of an object array must be `bytes`."""
    if array.dtype.kind == "O":
        pieces: list[bytes] = []
        for value in array.ravel().tolist():
            pieces += (_LENGTH.pack(len(value)), value)
        return b"".join(pieces)
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()


def tensor_from_bytes(
    name: str, datatype: Datatype, shape: tuple[int, ...], content: bytes | memoryview
) -> AnyArray:
    """Return the tensor that content spells: numbers as a read-only view, BYTES as a copy.

    Raises InputError naming the tensor if content is not exactly one tensor of this shape; the
    sizes are compared before anything is allocated for elements.
    """
    if datatype == "BYTES":
        return _strings_from_bytes(name, shape, content)
    dtype = NUMPY_FROM_DATATYPE[datatype]
    expected = math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise InputError(
            f"input {name!r}: shape {list(shape)} of {datatype} is {expected} bytes, "
            f"not {len(content)}"
        )
    if datatype == "BOOL" and np.any(np.frombuffer(content, dtype=np.uint8) > 1):
        raise InputError(f"input {name!r}: a BOOL byte must be 0 or 1")
    return np.frombuffer(content, dtype=dtype).reshape(shape)


def tensor_from_strings(array: AnyArray) -> AnyArray:
    """Return an array of numbers as it is, one of text or bytes as a BYTES tensor.

    Text becomes UTF-8. Raises InputError for a dtype, or an element, that is neither.
    """
    if array.dtype.kind not in "OSU":
        datatype_from_numpy(array.dtype)
        return array
    values = []
    for value in array.ravel().tolist():
        if not isinstance(value, bytes | str):
            raise InputError(f"an array of objects holds a {type(value).__name__}; give text")
        values.append(value.encode() if isinstance(value, str) else value)
    return object_array(values, array.shape)


def text_from_tensor(name: str, array: AnyArray) -> AnyArray:
    """Return a BYTES tensor as an object array of `str`; raises InputError if it is not UTF-8."""
    try:
        text = [value.decode() for value in array.ravel().tolist()]
    except (UnicodeDecodeError, AttributeError) as error:
        raise InputError(
            f"input {name!r}: an element is no UTF-8, and the model takes text only: {error}"
        ) from error
    return object_array(text, array.shape)


def object_array(values: Sequence[bytes | str], shape: tuple[int, ...]) -> AnyArray:
    """Return an object array of these elements, row-major; numpy would cut NULs off strings."""
    array = np.empty(len(values), object)
    array[:] = values
    return array.reshape(shape)


def held_bytes(array: AnyArray) -> int:
    """Return the memory that a tensor holds: of an object array, that of its elements too."""
    if array.dtype.kind != "O":
        return array.nbytes
    return array.nbytes + sum(map(sys.getsizeof, array.ravel().tolist()))


def _strings_from_bytes(name: str, shape: tuple[int, ...], content: bytes | memoryview) -> AnyArray:
    count, size = math.prod(shape), len(content)
    if size < count * _LENGTH.size:
        raise InputError(
            f"input {name!r}: shape {list(shape)} of BYTES is at least {count * _LENGTH.size} "
            f"bytes, a length of four for each element, not {size}"
        )
    whole, offset, values = bytes(content), 0, []
    for number in range(count):
        start = offset + _LENGTH.size
        offset = start + _LENGTH.unpack_from(whole, offset)[0] if start <= size else size + 1
        if offset > size:
            raise InputError(
                f"input {name!r}: element {number} of {count} ends behind the tensor's {size} bytes"
            )
        values.append(whole[start:offset])
    if offset != size:
        raise InputError(
            f"input {name!r}: {count} elements take {offset} bytes, the tensor has {size}"
        )
    return object_array(values, shape)
