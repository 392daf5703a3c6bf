"""Which requests can run as one, how their rows are put together, and how the answers part again.

Requests are compatible if their inputs agree in everything but the number of rows and, where the
model says how to pad, the length of one ragged dimension (tokens, say): shorter requests are then
padded to the longest, and outputs that have that dimension are cut back.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import msgspec
import numpy as np

from edge.manifest import Batching
from edge.spec import AnyArray, Feeds, Profile, TensorSpec

# Padded rows may cost up to so many times what the requests alone would.
MAX_PADDED_COST = 1.5


class Extent(msgspec.Struct, frozen=True, kw_only=True):
    """What one request or several joined take.

    key: equal for what can be joined, None for what cannot. length: of the ragged dimension, the
    longest, 0 without one. area: rows times length of each, before padding.
    """

    key: Hashable
    rows: int
    length: int = 0
    area: int = 0


class Plan:
    """How requests to one model are joined, by what its bundle says; see `Batching`.

    max_rows: of a batch; 1 if requests are never joined.
    """

    def __init__(
        self,
        batching: Batching | None,
        *,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        profile: Profile,
        max_rows: int | None = None,
    ) -> None:
        self._pads = {} if batching is None else dict(batching.pads)
        ragged = None if batching is None else batching.ragged
        self._ragged_axis = {spec.name: _axis(spec, ragged) for spec in (*inputs, *outputs)}
        self.max_rows, self._max_length, self._multiple = 1, 0, 1
        if batching is not None:
            self.max_rows = min(bounds.max[0] for bounds in profile.ranges.values())
            self._multiple = batching.multiple
        if max_rows is not None:
            self.max_rows = min(self.max_rows, max_rows)
        for spec in inputs:
            axis = self._ragged_axis[spec.name]
            if axis is not None:
                self._max_length = profile.ranges[spec.name].max[axis]

    def extent(self, feeds: Feeds) -> Extent:
        """Return what a checked request takes."""
        first = next(iter(feeds.values()))
        rows = len(first) if first.ndim else 1
        if self.max_rows == 1:
            return Extent(key=None, rows=rows)
        length, key = 0, []
        for name, array in feeds.items():
            axis, shape = self._ragged_axis[name], list(array.shape[1:])
            if axis is not None:
                length = array.shape[axis]
                shape[axis - 1] = -1
            key.append((name, tuple(shape)))
        return Extent(key=tuple(sorted(key)), rows=rows, length=length, area=rows * length)

    def joined(self, taken: Extent, more: Extent) -> Extent | None:
        """Return what both take together; None if that is too many rows or too much padding."""
        rows, length = taken.rows + more.rows, max(taken.length, more.length)
        area = taken.area + more.area
        if more.key is None or more.key != taken.key or rows > self.max_rows:
            return None
        if rows * length > MAX_PADDED_COST * area:
            return None
        return Extent(key=taken.key, rows=rows, length=length, area=area)

    def join(self, requests: Sequence[Feeds]) -> Feeds:
        """Return the rows of compatible requests as one, padded where they are ragged."""
        if len(requests) == 1:
            return requests[0]
        joined = {}
        for name in requests[0]:
            arrays = [feeds[name] for feeds in requests]
            axis = self._ragged_axis[name]
            if axis is not None:
                length = self._padded(max(array.shape[axis] for array in arrays))
                arrays = [self._pad(name, array, axis, length) for array in arrays]
            joined[name] = np.concatenate(arrays)
        return joined

    def split(
        self, outputs: Mapping[str, AnyArray], extents: Sequence[Extent]
    ) -> list[dict[str, AnyArray]]:
        """Return the outputs of each request; views that nobody writes to."""
        if len(extents) == 1:
            return [dict(outputs)]
        answers: list[dict[str, AnyArray]] = []
        start = 0
        for extent in extents:
            part = {}
            for name, array in outputs.items():
                rows = array[start : start + extent.rows]
                axis = self._ragged_axis[name]
                if axis is not None:
                    rows = rows[(slice(None),) * axis + (slice(extent.length),)]
                part[name] = rows
            answers.append(part)
            start += extent.rows
        return answers

    def _padded(self, length: int) -> int:
        """Return a length rounded up, so that few shapes occur: engines prepare each anew."""
        return min(self._max_length, -(-length // self._multiple) * self._multiple)

    def _pad(self, name: str, array: AnyArray, axis: int, length: int) -> AnyArray:
        if array.shape[axis] == length:
            return array
        shape = list(array.shape)
        shape[axis] = length
        padded = np.full(shape, self._pads[name], array.dtype)
        padded[(slice(None),) * axis + (slice(array.shape[axis]),)] = array
        return padded


def _axis(spec: TensorSpec, ragged: str | None) -> int | None:
    return spec.shape.index(ragged) if ragged is not None and ragged in spec.shape else None
