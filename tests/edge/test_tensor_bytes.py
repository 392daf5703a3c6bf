"""Tensors as bytes, against tritonclient's own spelling of strings."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from edge.errors import InputError
from edge.spec import NUMPY_FROM_DATATYPE, Datatype
from edge.tensor_bytes import (
    bytes_from_tensor,
    held_bytes,
    object_array,
    tensor_from_bytes,
    tensor_from_strings,
    text_from_tensor,
)

strings = st.lists(st.binary(max_size=20) | st.text(max_size=8), min_size=1, max_size=12)


def shaped(values: list, rows: int) -> np.ndarray:
    return object_array(values, (rows, -1) if len(values) % rows == 0 else (len(values),))


@settings(max_examples=300, deadline=None)
@given(values=strings, rows=st.integers(1, 3))
def test_strings_are_spelled_as_tritonclient_does(values: list, rows: int) -> None:
    tensor = tensor_from_strings(shaped(values, rows))
    assert bytes_from_tensor(tensor) == serialize_byte_tensor(shaped(values, rows)).item()
    assert tensor.shape == shaped(values, rows).shape


@settings(max_examples=300, deadline=None)
@given(values=st.lists(st.binary(max_size=20), min_size=1, max_size=12))
def test_strings_are_read_as_tritonclient_does(values: list[bytes]) -> None:
    content = bytes_from_tensor(object_array(values, (len(values),)))
    read = tensor_from_bytes("x", "BYTES", (len(values),), memoryview(content))
    assert read.tolist() == values == deserialize_bytes_tensor(content).tolist()


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=40), count=st.integers(1, 6))
def test_any_bytes_are_exactly_one_tensor_or_refused(content: bytes, count: int) -> None:
    try:
        tensor = tensor_from_bytes("x", "BYTES", (count,), content)
    except InputError:
        # Then a reader that follows the lengths runs out of bytes, or has some left.
        rest = content
        for _ in range(count):
            length = int.from_bytes(rest[:4], "little") if len(rest) >= 4 else len(content) + 1
            if len(rest) < 4 + length:
                return
            rest = rest[4 + length :]
        assert rest
        return
    assert bytes_from_tensor(tensor) == content


@pytest.mark.parametrize("datatype", [name for name in NUMPY_FROM_DATATYPE if name != "BYTES"])
def test_numbers_are_little_endian_and_row_major(datatype: Datatype) -> None:
    dtype = NUMPY_FROM_DATATYPE[datatype]
    array = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype)
    content = bytes_from_tensor(np.asfortranarray(array).astype(dtype.newbyteorder(">")))
    assert content == array.tobytes()
    np.testing.assert_array_equal(tensor_from_bytes("x", datatype, (2, 3), content), array)
    with pytest.raises(InputError, match=f"is {len(content)} bytes, not {len(content) - 1}"):
        tensor_from_bytes("x", datatype, (2, 3), content[1:])


@pytest.mark.parametrize("dtype", ["S", "U", "O"])
def test_arrays_of_strings_become_bytes_and_numbers_stay(dtype: str) -> None:
    array = np.array(["a", "grün"] if dtype != "S" else [b"a", "grün".encode()]).astype(dtype)
    assert tensor_from_strings(array).tolist() == [b"a", "grün".encode()]
    numbers = np.arange(3)
    assert tensor_from_strings(numbers) is numbers


@pytest.mark.parametrize("array", [np.array([1, None], object), np.array([1j])])
def test_other_objects_are_no_strings(array: np.ndarray) -> None:
    with pytest.raises(InputError):
        tensor_from_strings(array)


def test_text_keeps_its_nuls_and_must_be_utf_8() -> None:
    tensor = object_array([b"a\0", "é".encode()], (2, 1))
    assert text_from_tensor("x", tensor).tolist() == [["a\0"], ["é"]]
    with pytest.raises(InputError, match=r"'x': an element is no UTF-8"):
        text_from_tensor("x", object_array([b"a", b"\xff"], (2,)))


def test_the_memory_of_strings_is_that_of_their_bytes_too() -> None:
    values = [b"x" * 1000, b"y" * 5000]
    held = held_bytes(object_array(values, (2,)))
    assert held == sum(8 + sys.getsizeof(value) for value in values)
    assert held > 6000
    assert held_bytes(np.zeros((3, 4), np.float32)) == 48
