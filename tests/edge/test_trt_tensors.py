from __future__ import annotations

import numpy as np
import pytest

from edge.errors import ModelError
from edge.trt_tensors import dtype_of


class Engine:
    """Has one tensor, whose DataType has this name."""

    def __init__(self, name: str) -> None:
        self._kind = type("DataType", (), {"name": name})

    def get_tensor_dtype(self, name: str) -> object:
        return self._kind


@pytest.mark.parametrize(
    ("name", "dtype"), [("FLOAT", "f4"), ("HALF", "f2"), ("INT64", "i8"), ("BOOL", "?")]
)
def test_a_type_of_tensorrt_is_one_of_numpy(name: str, dtype: str) -> None:
    assert dtype_of(Engine(name), "x") == np.dtype(dtype)


def test_a_type_that_numpy_has_not_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="'x' has the type FP8, which has no numpy form"):
        dtype_of(Engine("FP8"), "x")
