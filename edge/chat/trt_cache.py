"""Keys and values of all lanes on the device, and the copies between them.

One block of memory of shape [layers, 2, lanes, kv_heads, capacity, head_dim]. Every copy here is
one call of the driver for all layers, so that a step costs the host no more with many of them.
"""

from __future__ import annotations

from typing import Any

from edge.chat.spec import DecoderSpec
from edge.chat.trt_base import Pitched, copy_blocks


class TrtCache:
    """A cache that grows from one capacity to the next; all zero at first.

    heads: H of the layers that `store` takes from.
    """

    def __init__(
        self, spec: DecoderSpec, capacities: tuple[int, ...], lanes: int, cuda: Any, stream: Any,
        *, heads: int = 0,
    ) -> None:  # fmt: skip
        self.capacity = capacities[0]
        self._capacities = capacities
        self._cuda = cuda
        self._stream = stream
        self._layers, self._lanes = spec.layers, lanes
        self._heads, self._kv_heads = heads, spec.kv_heads
        self._position_bytes = spec.head_dim * spec.cache_dtype.itemsize
        self._memory = self._new(self.capacity)

    def address(self, layer: int, kind: int, lane: int) -> int:
        """Return where the keys (kind 0) or values (1) of a layer begin, for lanes from one on."""
        block = (layer * 2 + kind) * self._lanes + lane
        return int(self._memory) + block * self._lane_bytes

    def reserve(self, length: int) -> bool:
        """Make room for length positions; True if addresses have changed."""
        return length > self.capacity and self._resize(length)

    def shrink(self, length: int) -> bool:
        """Keep length positions alone; True if addresses have changed."""
        return length < self.capacity and self._resize(length)

    def store(
        self, heads: int, *, width: int, row: int, tokens: int, count: int,
        lane: int, start: int, layers: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        """Take the new positions of a lane from what layers gave, one behind the other.

        heads: address of [layers, width, N, tokens, head_dim]. row: which of the width.
        count: tokens that count. layers: first and last + 1, all by default.
        """
        first, end = layers or (0, self._layers)
        every = self._heads + 2 * self._kv_heads
        for kind in (0, 1):
            begin = row * every + self._heads + kind * self._kv_heads
            self._copy(
                source=heads + begin * tokens * self._position_bytes,
                source_pitch=tokens,
                source_height=width * every,
                target=self.address(first, kind, lane) + start * self._position_bytes,
                target_pitch=self.capacity,
                target_height=2 * self._lanes * self._kv_heads,
                length=count,
                depth=end - first,
            )

    def copy(self, source: int, target: int, length: int) -> None:
        """Make the first positions of a lane those of another."""
        self._copy_lane(self.address(0, 0, source), self.address(0, 0, target), length)

    def swap(self, one: int, other: int, length: int) -> None:
        """Exchange the first positions of two lanes."""
        size = 2 * self._layers * self._kv_heads * max(1, length) * self._position_bytes
        kept = self._cuda.mem_alloc(size)
        block = {"pitch": length, "height": self._kv_heads}
        self._copy_lane(self.address(0, 0, one), int(kept), length, target=block)
        self._copy_lane(self.address(0, 0, other), self.address(0, 0, one), length)
        self._copy_lane(int(kept), self.address(0, 0, other), length, source=block)
        self._stream.synchronize()
        kept.free()

    def clear(self, lane: int) -> None:
        """Make a lane all zero."""
        self._cuda.memset_d2d8_async(
            self.address(0, 0, lane), self._lanes * self._lane_bytes, 0, self._lane_bytes,
            2 * self._layers, self._stream,
        )  # fmt: skip

    def close(self) -> None:
        """Free the memory."""
        if self._memory is not None:
            self._memory.free()
        self._memory = None

    @property
    def _lane_bytes(self) -> int:
        return self._kv_heads * self.capacity * self._position_bytes

    def _new(self, capacity: int) -> Any:
        rows = 2 * self._layers * self._lanes * self._kv_heads
        size = rows * capacity * self._position_bytes
        memory = self._cuda.mem_alloc(size)
        # Zero: a NaN would spoil even tokens that do not see it.
        self._cuda.memset_d8_async(int(memory), 0, size, self._stream)
        return memory

    def _resize(self, length: int) -> bool:
        fitting = [size for size in self._capacities if size >= length]
        capacity = fitting[0] if fitting else self._capacities[-1]
        if capacity == self.capacity:
            return False
        memory = self._new(capacity)
        rows = 2 * self._layers * self._lanes * self._kv_heads
        self._copy(
            source=int(self._memory), source_pitch=self.capacity, source_height=rows,
            target=int(memory), target_pitch=capacity, target_height=rows,
            length=min(capacity, self.capacity), depth=1, height=rows,
        )  # fmt: skip
        self._stream.synchronize()
        self._memory.free()
        self._memory, self.capacity = memory, capacity
        return True

    def _copy_lane(
        self, begin: int, end: int, length: int, *,
        source: dict[str, int] | None = None, target: dict[str, int] | None = None,
    ) -> None:  # fmt: skip
        own = {"pitch": self.capacity, "height": self._lanes * self._kv_heads}
        source, target = source or own, target or own
        self._copy(
            source=begin, source_pitch=source["pitch"], source_height=source["height"],
            target=end, target_pitch=target["pitch"], target_height=target["height"],
            length=length, depth=2 * self._layers,
        )  # fmt: skip

    def _copy(
        self, *, source: int, source_pitch: int, source_height: int,
        target: int, target_pitch: int, target_height: int,
        length: int, depth: int, height: int | None = None,
    ) -> None:  # fmt: skip
        """Copy `length` positions of `height` heads, `depth` times; pitches are in positions."""
        size = self._position_bytes
        copy_blocks(
            self._cuda, self._stream,
            Pitched(source, source_pitch * size, source_height),
            Pitched(target, target_pitch * size, target_height),
            width=length * size,
            height=self._kv_heads if height is None else height,
            depth=depth,
        )  # fmt: skip
