"""The seam between who decides on tokens and who computes them: an opened chat graph.

Every implementation passes tests/edge/chat/decoder_contract.py.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from edge.chat.spec import DecoderSpec

SMALLEST_CAPACITY = 64

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


class Decoder(Protocol):
    """An opened chat graph and its cache. Not thread-safe: one thread opens, runs and closes it.

    The cache has `lanes` rows of at most `spec.context` positions, all zero at first. Nothing is
    remembered of a lane but its cache: `start` says how much of that counts.
    """

    @property
    def spec(self) -> DecoderSpec:
        """What the graph is."""

    @property
    def lanes(self) -> int:
        """How many rows the cache has."""

    @property
    def longest_step(self) -> int:
        """How many tokens of a lane a step may take."""

    @property
    def grows(self) -> bool:
        """Whether the cache is as long as it had to be so far, so that `shrink` makes it faster."""

    def step(
        self,
        first: int,
        tokens: IntArray,
        start: IntArray,
        rows: IntArray,
        *,
        top: int | None = None,
    ) -> FloatArray:
        """Run new tokens in lanes first..first+n-1 and return logits FP32 [n, wanted, vocabulary].

        tokens: [n, tokens]; those of a lane take its positions start..start+tokens-1, all below
        the context, and see what was run before at positions below. start: [n].
        rows: [n, wanted], which of the new tokens to give logits for. top: so many of the largest
        logits of a row are all that is asked for; the others may be minus infinity.
        What is returned is read before the next call, which may overwrite it.
        Raises InferenceError if the backend fails; the caches of these lanes are unknown then.
        """

    def copy_lane(self, source: int, target: int, length: int) -> None:
        """Make the first positions of a lane those of another; the target's others are unknown."""

    def swap_lanes(self, one: int, other: int, length: int) -> None:
        """Exchange the first positions of two lanes; their others are unknown then."""

    def clear_lane(self, lane: int) -> None:
        """Make a lane all zero: a NaN in its cache would spoil even tokens that do not see it."""

    def shrink(self, length: int) -> None:
        """Forget all positions from length on, if that makes later steps faster."""

    def close(self) -> None:
        """Free graph and cache; then steps raise InferenceError, and `close` does nothing."""


def capacity_for(length: int, context: int) -> int:
    """Return how long a cache that grows is once it has held length positions.

    Four sizes to each doubling, as all of a cache is read at every step, but none for fewer than
    SMALLEST_CAPACITY positions more: to grow takes a few milliseconds.
    """
    quarter = max(SMALLEST_CAPACITY, (1 << max(length - 1, 0).bit_length()) // 8)
    return min(max(1, -(-length // quarter)) * quarter, context)
