"""What the decoders on TensorRT do alike: steps are checked, errors named, lanes copied."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

from edge.chat.decoder import FloatArray, IntArray
from edge.chat.spec import DecoderSpec
from edge.errors import InferenceError


class LaneCache(Protocol):
    """Keys and values of all lanes on the device."""

    def copy(self, source: int, target: int, length: int) -> None:
        """See `Decoder.copy_lane`."""

    def swap(self, one: int, other: int, length: int) -> None:
        """See `Decoder.swap_lanes`."""

    def clear(self, lane: int) -> None:
        """See `Decoder.clear_lane`."""


@dataclass(frozen=True, slots=True)
class Pitched:
    """Where blocks of rows lie: pitch bytes from row to row, height rows from block to block."""

    address: int
    pitch: int
    height: int


def copy_blocks(
    cuda: Any, stream: Any, source: Pitched, target: Pitched, *, width: int, height: int, depth: int
) -> None:
    """Put the copy of `height` rows of width bytes in each of `depth` blocks on a stream."""
    if width * height * depth == 0:
        return
    copy = cuda.Memcpy3D()
    copy.set_src_device(source.address)
    copy.set_dst_device(target.address)
    copy.src_pitch, copy.src_height = source.pitch, source.height
    copy.dst_pitch, copy.dst_height = target.pitch, target.height
    copy.width_in_bytes, copy.height, copy.depth = width, height, depth
    copy(stream)


class DeviceDecoder(ABC):
    """A Decoder on a CUDA device; whoever inherits sets what it declares.

    _device: the context that every call enters. _cuda: the driver, as PyCUDA names it.
    """

    spec: DecoderSpec
    lanes: int
    longest_step: int
    _cache: LaneCache
    _cuda: Any
    _device: Any
    _is_open: bool

    @abstractmethod
    def _step(
        self, first: int, tokens: IntArray, start: IntArray, rows: IntArray, top: int | None
    ) -> FloatArray:
        """Do `step`, checked and on the device."""

    def step(
        self, first: int, tokens: IntArray, start: IntArray, rows: IntArray, *,
        top: int | None = None,
    ) -> FloatArray:  # fmt: skip
        """Return logits FP32 [n, wanted, vocabulary]; see `decoder.Decoder`."""
        if not self._is_open:
            raise InferenceError("the decoder is closed; open the model again")
        lanes, count = tokens.shape
        end = max(start.tolist()) + count
        if end > self.spec.context or not 0 <= first <= first + lanes <= self.lanes:
            raise ValueError(f"lanes {first}..{first + lanes - 1}, positions up to {end}")
        if count > self.longest_step:
            raise ValueError(f"{count} tokens, a step takes {self.longest_step}")
        with self._device:
            try:
                return self._step(first, tokens, start, rows, top)
            except self._cuda.Error as error:
                raise InferenceError(f"CUDA failed to run the engine: {error}") from error

    def copy_lane(self, source: int, target: int, length: int) -> None:
        """Make the first positions of a lane those of another."""
        with self._device:
            self._cache.copy(source, target, length)

    def swap_lanes(self, one: int, other: int, length: int) -> None:
        """Exchange the first positions of two lanes."""
        with self._device:
            self._cache.swap(one, other, length)

    def clear_lane(self, lane: int) -> None:
        """Make a lane all zero."""
        with self._device:
            self._cache.clear(lane)
