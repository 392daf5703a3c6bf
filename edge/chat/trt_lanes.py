"""The caches of a whole engine on the device, one class for each kind of graph.

In shapes: N layers, L lanes, K heads of keys and values, D head_dim. Every copy is one call of the
driver for all layers. TensorRT wants its tensors at multiples of ALIGNMENT_BYTES.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import gcd
from typing import Any, Protocol

from edge.chat.decoder import IntArray, capacity_for
from edge.chat.spec import DecoderSpec, cache_inputs, cache_outputs
from edge.chat.trt_base import LaneCache, Pitched, copy_blocks
from edge.chat.trt_buffers import ALIGNMENT_BYTES
from edge.chat.trt_cache import TrtCache


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The lanes of a run: those from `first` on are its rows from `row` on, of `width`.

    prefix: positions of the cache that it reads, None for all. place: lane where the caches begin
    that it is given. Two views are the same if a run is given the same memory.
    """

    first: int = field(compare=False)
    place: int = 0
    row: int
    width: int
    prefix: int | None = None


class Lanes(LaneCache, Protocol):
    """Keys and values of all lanes; all zero at first."""

    def view(self, first: int, start: IntArray, count: int) -> tuple[View, bool]:
        """Return how the lanes from first on run count tokens; True if addresses have changed."""

    def load(self, view: View, length: int) -> None:
        """Put what a run reads of these lanes where it reads it, before the run."""

    def addresses(self, view: View, count: int) -> dict[str, int]:
        """Return where the caches of a run of count tokens are."""

    def store(self, view: View, start: IntArray, count: int) -> None:
        """Take over what a run has computed."""

    def close(self) -> None:
        """Free the memory."""


class ScatterLanes:
    """[N, 2, L, K, capacity, D], which the engine updates in place; lanes side by side are a view.

    spec: of the engine, whose context is its capacity.
    """

    def __init__(self, spec: DecoderSpec, lanes: int, cuda: Any, stream: Any) -> None:
        self._layers = spec.layers
        self._names = tuple(zip(cache_inputs(spec), cache_outputs(spec), strict=True))
        self._cache = TrtCache(spec, (spec.context,), lanes, cuda, stream)

    def view(self, first: int, start: IntArray, count: int) -> tuple[View, bool]:
        """Return the lanes alone: an idle one would be written to."""
        return View(first=first, place=first, row=0, width=len(start)), False

    def load(self, view: View, length: int) -> None:
        """Do nothing: all is in place."""

    def addresses(self, view: View, count: int) -> dict[str, int]:
        """Return the address of each cache as that of its input and of its output."""
        places = (
            self._cache.address(layer, kind, view.place)
            for layer in range(self._layers)
            for kind in (0, 1)
        )
        return {
            name: place
            for names, place in zip(self._names, places, strict=True)
            for name in names
        }  # fmt: skip

    def store(self, view: View, start: IntArray, count: int) -> None:
        """Do nothing: all is in place."""

    def copy(self, source: int, target: int, length: int) -> None:
        """Make the first positions of a lane those of another."""
        self._cache.copy(source, target, length)

    def swap(self, one: int, other: int, length: int) -> None:
        """Exchange the first positions of two lanes."""
        self._cache.swap(one, other, length)

    def clear(self, lane: int) -> None:
        """Make a lane all zero."""
        self._cache.clear(lane)

    def close(self) -> None:
        """Free the memory."""
        self._cache.close()


class PrefixLanes:
    """[N * 2, context, L, K, D]: a run reads the first positions and gives new ones.

    All lanes lie side by side. One of several is gathered before a run; where more run, the idle
    ones run along and what they give is left.
    """

    def __init__(self, spec: DecoderSpec, lanes: int, cuda: Any, stream: Any) -> None:
        self._inputs, self._outputs = cache_inputs(spec), cache_outputs(spec)
        self._context, self._lanes = spec.context, lanes
        self._cuda, self._stream = cuda, stream
        self._position_bytes = spec.kv_heads * spec.head_dim * spec.cache_dtype.itemsize
        self._height = self._padded(spec.context, lanes)
        self._cache = self._zeros(self._height * lanes)
        self._alone_height = self._padded(spec.context, 1)
        # Of one lane; with a single one the cache is that.
        self._alone = self._cache if lanes == 1 else self._zeros(self._alone_height)
        self._new: Any = None
        self._new_rows = 0

    def view(self, first: int, start: IntArray, count: int) -> tuple[View, bool]:
        """Return one lane, or all of them; makes room for what they will give."""
        is_one = len(start) == 1
        width = 1 if is_one else self._lanes
        rows = self._padded(count, width) * width
        has_moved = rows > self._new_rows
        if has_moved:
            if self._new is not None:
                self._new.free()
            self._new, self._new_rows = self._zeros(rows), rows
        prefix = capacity_for(max(1, int(start.max())), self._context)
        row = 0 if is_one else first
        return View(first=first, row=row, width=width, prefix=prefix), has_moved

    def load(self, view: View, length: int) -> None:
        """Gather the lane of a run of one."""
        if view.width == 1 and self._lanes > 1:
            self._copy(
                source=self._lane(view.first), source_pitch=self._lanes,
                source_height=self._height, target=int(self._alone), target_pitch=1,
                target_height=self._alone_height, length=length,
            )  # fmt: skip

    def addresses(self, view: View, count: int) -> dict[str, int]:
        """Return where the caches and the new positions are."""
        is_one = view.width == 1 and self._lanes > 1
        begin, height = int(self._cache), self._height * self._lanes
        if is_one:
            begin, height = int(self._alone), self._alone_height
        block = self._padded(count, view.width) * view.width
        size = self._position_bytes
        caches = {name: begin + i * height * size for i, name in enumerate(self._inputs)}
        return caches | {
            name: int(self._new) + i * block * size for i, name in enumerate(self._outputs)
        }

    def store(self, view: View, start: IntArray, count: int) -> None:
        """Write the new positions to where each lane has them."""
        for row, begin in enumerate(start.tolist()):
            self._copy(
                source=int(self._new) + (view.row + row) * self._position_bytes,
                source_pitch=view.width, source_height=self._padded(count, view.width),
                target=self._lane(view.first + row) + begin * self._lanes * self._position_bytes,
                target_pitch=self._lanes, target_height=self._height, length=count,
            )  # fmt: skip

    def copy(self, source: int, target: int, length: int) -> None:
        """Make the first positions of a lane those of another."""
        self._between(self._lane(source), self._lane(target), length)

    def swap(self, one: int, other: int, length: int) -> None:
        """Exchange the first positions of two lanes."""
        if length == 0:
            return
        kept = self._cuda.mem_alloc(len(self._inputs) * length * self._position_bytes)
        own = {"pitch": 1, "height": length}
        self._between(self._lane(one), int(kept), length, target=own)
        self._between(self._lane(other), self._lane(one), length)
        self._between(int(kept), self._lane(other), length, source=own)
        self._stream.synchronize()
        kept.free()

    def clear(self, lane: int) -> None:
        """Make a lane all zero."""
        self._cuda.memset_d2d8_async(
            self._lane(lane), self._lanes * self._position_bytes, 0, self._position_bytes,
            len(self._inputs) * self._height, self._stream,
        )  # fmt: skip

    def close(self) -> None:
        """Free the memory."""
        for memory in {id(m): m for m in (self._cache, self._alone, self._new) if m}.values():
            memory.free()
        self._cache = self._alone = self._new = None

    def _lane(self, lane: int) -> int:
        return int(self._cache) + lane * self._position_bytes

    def _padded(self, positions: int, width: int) -> int:
        """Return how many positions keep the next layer's aligned."""
        row = width * self._position_bytes
        unit = ALIGNMENT_BYTES // gcd(ALIGNMENT_BYTES, row)
        return -(-positions // unit) * unit

    def _zeros(self, rows: int) -> Any:
        size = len(self._inputs) * rows * self._position_bytes
        memory = self._cuda.mem_alloc(size)
        self._cuda.memset_d8_async(int(memory), 0, size, self._stream)
        return memory

    def _between(
        self, begin: int, end: int, length: int, *,
        source: dict[str, int] | None = None, target: dict[str, int] | None = None,
    ) -> None:  # fmt: skip
        own = {"pitch": self._lanes, "height": self._height}
        source, target = source or own, target or own
        self._copy(
            source=begin, source_pitch=source["pitch"], source_height=source["height"],
            target=end, target_pitch=target["pitch"], target_height=target["height"],
            length=length,
        )  # fmt: skip

    def _copy(
        self, *, source: int, source_pitch: int, source_height: int,
        target: int, target_pitch: int, target_height: int, length: int,
    ) -> None:  # fmt: skip
        """Copy the first positions of a lane in all layers; pitches are in lanes."""
        size = self._position_bytes
        copy_blocks(
            self._cuda, self._stream,
            Pitched(source, source_pitch * size, source_height),
            Pitched(target, target_pitch * size, target_height),
            width=size, height=length, depth=len(self._inputs),
        )  # fmt: skip


def lanes_of(spec: DecoderSpec, lanes: int, cuda: Any, stream: Any) -> Lanes:
    """Return an empty cache for an engine of this form."""
    kind = PrefixLanes if spec.form == "prefix" else ScatterLanes
    return kind(spec, lanes, cuda, stream)
