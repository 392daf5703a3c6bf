"""Inputs to measure with: golden rows where a bundle is at hand, else made within the profile."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from edge.errors import UsageError
from edge.manifest import Model
from edge.self_test import tensor_from_golden
from edge.spec import AnyArray, TensorSpec
from edge.tensor_bytes import object_array

DEFAULT_LENGTH = 32  # of a dimension that varies, besides the batch, where no bundle tells


def golden_feeds(
    model: Model, read: Callable[[str], bytes], *, rows: int, first: int = 0
) -> dict[str, AnyArray]:
    """Return rows of the largest golden case, from a row on and then over again.

    read: artifact path -> content. A model without a batch gets its golden case as it is. Raises
    UsageError for more rows than the profile takes.
    """
    case = max(model.golden.cases, key=lambda case: sum(t.shape[0] for t in case.inputs if t.shape))
    feeds = {tensor.name: tensor_from_golden(tensor, read) for tensor in case.inputs}
    most = model.max_batch_size
    if rows > max(1, most):
        raise UsageError(f"model {model.name!r} takes {max(1, most)} rows at most, not {rows}")
    if most == 0:
        return feeds
    return {name: array[np.arange(first, first + rows) % len(array)] for name, array in
            feeds.items()}  # fmt: skip


def made_feeds(
    inputs: tuple[TensorSpec, ...],
    *,
    rows: int,
    length: int = DEFAULT_LENGTH,
    rng: np.random.Generator,
) -> dict[str, AnyArray]:
    """Return random inputs of the specs: floats are normal, bytes uniform, other integers 1.

    Every named first dimension is rows, every other one length. 1 is a token, a mask and an index
    that nearly every model takes.
    """
    feeds: dict[str, AnyArray] = {}
    for spec in inputs:
        shape = [
            dim if isinstance(dim, int) else (rows if axis == 0 else length)
            for axis, dim in enumerate(spec.shape)
        ]
        if spec.dtype.kind == "f":
            feeds[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
        elif spec.datatype == "BYTES":
            feeds[spec.name] = object_array([b"text"] * math.prod(shape), tuple(shape))
        elif spec.datatype == "UINT8":
            feeds[spec.name] = rng.integers(0, 256, shape, dtype=np.uint8)
        else:
            feeds[spec.name] = np.ones(shape, spec.dtype)
    return feeds
