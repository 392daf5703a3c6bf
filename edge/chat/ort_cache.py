"""The caches of a chat graph in this process's memory, one class for each form of graph.

Each binds its arrays by address, so that ONNX Runtime copies nothing: what it reads and writes is
here. In shapes: L lanes, K heads of keys and values, D head_dim.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edge.chat.decoder import IntArray, capacity_for
from edge.chat.spec import DecoderSpec, cache_inputs, cache_outputs

# Of vectors as long as any CPU's; numpy itself promises 16.
ALIGNMENT_BYTES = 64

Array = npt.NDArray[Any]


class OrtCache(Protocol):
    """Keys and values of all lanes.

    grows: see `Decoder`. keeps_address: whether what was bound stays right until `reserve` or
    `shrink` says otherwise. joins_lanes: whether a run may have several lanes.
    """

    grows: bool
    keeps_address: bool
    joins_lanes: bool

    def reserve(self, length: int) -> bool:
        """Make room for length positions in every lane; True if addresses have changed."""

    def bind(self, binding: Any, first: int, start: IntArray, count: int) -> None:
        """Bind inputs and outputs of a run of count tokens in lanes first..first+len(start)-1."""

    def store(self, first: int, start: IntArray, count: int) -> None:
        """Take over what the run that was bound last has computed."""

    def copy(self, source: int, target: int, length: int) -> None:
        """See `Decoder.copy_lane`."""

    def swap(self, one: int, other: int, length: int) -> None:
        """See `Decoder.swap_lanes`."""

    def clear(self, lane: int) -> None:
        """See `Decoder.clear_lane`."""

    def shrink(self, length: int) -> bool:
        """Forget all positions from length on; True if addresses have changed."""


def cache_of(spec: DecoderSpec, lanes: int) -> OrtCache:
    """Return an empty cache for a graph of this form."""
    if spec.form == "prefix":
        return PrefixCache(spec, lanes)
    if spec.form == "concat":
        return ConcatCache(spec, lanes)
    return ScatterCache(spec, lanes)


class ScatterCache:
    """Arrays [L, K, capacity, D], which a run updates in place; lanes side by side are a view."""

    grows = True
    keeps_address = True
    joins_lanes = True

    def __init__(self, spec: DecoderSpec, lanes: int) -> None:
        self._names = tuple(zip(cache_inputs(spec), cache_outputs(spec), strict=True))
        self._context = spec.context
        shape = (lanes, spec.kv_heads, capacity_for(1, spec.context), spec.head_dim)
        self._arrays = [_zeros(shape, _dtype(spec)) for _ in self._names]

    @property
    def _capacity(self) -> int:
        return int(self._arrays[0].shape[2])

    def reserve(self, length: int) -> bool:
        """Grow to twice the length, or four times and so on; True if it did."""
        return length > self._capacity and self._resize(length)

    def shrink(self, length: int) -> bool:
        """Let go of what has grown; True if it did."""
        return length < self._capacity and self._resize(length)

    def _resize(self, length: int) -> bool:
        capacity = capacity_for(length, self._context)
        kept = min(capacity, self._capacity)
        for i, old in enumerate(self._arrays):
            lanes, heads, _, dim = old.shape
            # One array at a time: so much more is needed, not as much again.
            self._arrays[i] = new = _zeros((lanes, heads, capacity, dim), old.dtype)
            new[:, :, :kept] = old[:, :, :kept]
        return True

    def bind(self, binding: Any, first: int, start: IntArray, count: int) -> None:
        """Bind each cache as input and as output: the new positions are written in place."""
        for (name, updated), array in zip(self._names, self._arrays, strict=True):
            lanes = array[first : first + len(start)]
            bind_input(binding, name, lanes)
            bind_output(binding, updated, lanes)

    def store(self, first: int, start: IntArray, count: int) -> None:
        """Do nothing: all is in place."""

    def copy(self, source: int, target: int, length: int) -> None:
        """Make the first positions of a lane those of another."""
        for array in self._arrays:
            array[target, :, :length] = array[source, :, :length]

    def swap(self, one: int, other: int, length: int) -> None:
        """Exchange the first positions of two lanes."""
        for array in self._arrays:
            array[[one, other], :, :length] = array[[other, one], :, :length]

    def clear(self, lane: int) -> None:
        """Make a lane all zero."""
        for array in self._arrays:
            array[lane] = 0


class PrefixCache:
    """Arrays [capacity, L, K, D]: a run reads as many positions as it needs and gives new ones.

    Only all lanes together lie side by side; for fewer the positions are copied.
    """

    grows = False
    keeps_address = False
    joins_lanes = True

    def __init__(self, spec: DecoderSpec, lanes: int) -> None:
        self._names = tuple(zip(cache_inputs(spec), cache_outputs(spec), strict=True))
        self._context = spec.context
        shape = (capacity_for(1, spec.context), lanes, spec.kv_heads, spec.head_dim)
        self._arrays = [_zeros(shape, _dtype(spec)) for _ in self._names]
        self._bound: list[tuple[Array, Array]] = []

    def reserve(self, length: int) -> bool:
        """Grow as a ScatterCache does; runs are bound anew in any case."""
        capacity = len(self._arrays[0])
        if length > capacity:
            for i, old in enumerate(self._arrays):
                shape = (capacity_for(length, self._context), *old.shape[1:])
                self._arrays[i] = new = _zeros(shape, old.dtype)
                new[:capacity] = old
        return False

    def shrink(self, length: int) -> bool:
        """Do nothing: a run reads no more than it needs."""
        return False

    def bind(self, binding: Any, first: int, start: IntArray, count: int) -> None:
        """Bind the positions up to the longest start, and memory for the new ones."""
        lanes, prefix = len(start), max(1, int(start.max()))
        self._bound = []
        for (name, updated), array in zip(self._names, self._arrays, strict=True):
            old = np.ascontiguousarray(array[:prefix, first : first + lanes])
            new = np.empty((count, lanes, *array.shape[2:]), array.dtype)
            self._bound.append((old, new))
            bind_input(binding, name, old)
            bind_output(binding, updated, new)

    def store(self, first: int, start: IntArray, count: int) -> None:
        """Write the new positions to where each lane has them."""
        for array, (_, new) in zip(self._arrays, self._bound, strict=True):
            for row, begin in enumerate(start):
                array[begin : begin + count, first + row] = new[:, row]
        self._bound = []

    def copy(self, source: int, target: int, length: int) -> None:
        """Make the first positions of a lane those of another."""
        for array in self._arrays:
            array[:length, target] = array[:length, source]

    def swap(self, one: int, other: int, length: int) -> None:
        """Exchange the first positions of two lanes."""
        for array in self._arrays:
            array[:length, [one, other]] = array[:length, [other, one]]

    def clear(self, lane: int) -> None:
        """Make a lane all zero."""
        for array in self._arrays:
            array[:, lane] = 0


class ConcatCache:
    """For each lane arrays [1, K, past, D], which every run copies and makes longer."""

    grows = False
    keeps_address = False
    joins_lanes = False

    def __init__(self, spec: DecoderSpec, lanes: int) -> None:
        self._names = tuple(zip(cache_inputs(spec), cache_outputs(spec), strict=True))
        self._empty = np.zeros((1, spec.kv_heads, 0, spec.head_dim), _dtype(spec))
        self._arrays = [[self._empty] * len(self._names) for _ in range(lanes)]
        self._bound: list[tuple[Array, Array]] = []

    def reserve(self, length: int) -> bool:
        """Do nothing: every run makes the arrays it needs."""
        return False

    def shrink(self, length: int) -> bool:
        """Do nothing: a lane has no more than its own positions."""
        return False

    def bind(self, binding: Any, first: int, start: IntArray, count: int) -> None:
        """Bind the positions before start, and memory for these and the new ones."""
        (past,) = start.tolist()
        self._bound = []
        for (name, updated), array in zip(self._names, self._arrays[first], strict=True):
            old = _first(array, past)
            new = np.empty((1, array.shape[1], past + count, array.shape[3]), array.dtype)
            self._bound.append((old, new))
            bind_input(binding, name, old)
            bind_output(binding, updated, new)

    def store(self, first: int, start: IntArray, count: int) -> None:
        """Take what the run gave for the cache."""
        self._arrays[first] = [new for _, new in self._bound]
        self._bound = []

    def copy(self, source: int, target: int, length: int) -> None:
        """Make the first positions of a lane those of another."""
        self._arrays[target] = [array[:, :, :length].copy() for array in self._arrays[source]]

    def swap(self, one: int, other: int, length: int) -> None:
        """Exchange the first positions of two lanes."""
        self._arrays[one], self._arrays[other] = self._arrays[other], self._arrays[one]

    def clear(self, lane: int) -> None:
        """Make a lane all zero."""
        self._arrays[lane] = [self._empty] * len(self._names)


def _first(array: Array, length: int) -> Array:
    """Return the first positions of [1, K, past, D] side by side, zero where there are none yet."""
    missing = length - array.shape[2]
    if missing <= 0:
        return np.ascontiguousarray(array[:, :, :length])
    return np.pad(array, ((0, 0), (0, 0), (0, missing), (0, 0)))


def bind_input(binding: Any, name: str, array: Array) -> None:
    """Let runs read an array where it is; whoever calls keeps it."""
    binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


def bind_output(binding: Any, name: str, array: Array) -> None:
    """Let runs write to an array where it is; whoever calls keeps it."""
    binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


def _dtype(spec: DecoderSpec) -> np.dtype[Any]:
    return np.dtype(np.float16 if spec.cache == "FP16" else np.float32)


def _zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    size = int(np.prod(shape)) * dtype.itemsize
    buffer = np.zeros(size + ALIGNMENT_BYTES, np.uint8)
    begin = -buffer.ctypes.data % ALIGNMENT_BYTES
    return buffer[begin : begin + size].view(dtype).reshape(shape)
