"""What calibration remembers of an activation: a range and a histogram, never the values.

One pass over the samples gives both: the histogram starts with the range of the first batch and
doubles the width of its bins whenever a larger value comes. Widths are powers of two, so that
halves of a sample set, observed apart, merge without loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from calibration.errors import CalibrationError
from edge.spec import AnyArray

MIN_BINS = 2048
# Below this a tensor counts as zero: its scale would be too close to the smallest float.
SMALLEST_AMAX = 1e-30
MOVING_AVERAGE_WEIGHT = 0.1
# Share of batches whose maxima are left out of the trimmed maximum, one at least.
TRIMMED_SHARE = 0.02
TRIMMED_FROM = 8  # batches; fewer say too little to leave one out
# In a batch of a tensor with so many values the lower half of the range is counted by sample: every
# fifth value, which meets every column of an image; clips are chosen by the tail, which is exact.
SAMPLED_FROM = 1 << 16
BULK_STRIDE = 5
_COLUMN = 16
_BINS = 2 * MIN_BINS  # a doubling leaves half of them in use


class Observer:
    """Largest magnitude of one tensor, overall and by batch, and counts of |x|.

    width: of a bin; bin i covers [i * width, (i + 1) * width).
    """

    STATE = ("counts", "maxima", "figures")  # what `state` gives
    __slots__ = ("_counts", "_maxima", "_zeros", "amax", "name", "width")

    def __init__(self, name: str) -> None:
        self.name = name
        self.amax = 0.0
        self.width = 0.0
        self._zeros = 0
        self._maxima: list[float] = []
        self._counts: npt.NDArray[np.int64] = np.zeros(_BINS, np.int64)

    @property
    def has_range(self) -> bool:
        """Whether any value was not zero."""
        return self.amax >= SMALLEST_AMAX

    @property
    def moving_amax(self) -> float:
        """The exponential moving average of the largest magnitude of each batch, in their order."""
        average = self._maxima[0] if self._maxima else 0.0
        for batch in self._maxima:
            average += MOVING_AVERAGE_WEIGHT * (batch - average)
        return average

    @property
    def trimmed_amax(self) -> float:
        """The largest magnitude without the batches that held the very largest."""
        if len(self._maxima) < TRIMMED_FROM:
            return self.amax
        left_out = math.ceil(TRIMMED_SHARE * len(self._maxima))
        return sorted(self._maxima)[-1 - left_out]

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """The bins up to the largest magnitude, MIN_BINS to twice as many."""
        if self.width == 0.0:
            return np.array([self._zeros], np.int64)
        used: npt.NDArray[np.int64] = self._counts[
            : min(_BINS, int(self.amax / self.width) + 1)
        ].copy()
        used[0] += self._zeros
        return used

    def update(self, values: AnyArray) -> None:
        """Take in one batch; raises CalibrationError for NaN or infinity in it."""
        if values.size == 0:
            return
        magnitude = np.abs(values.reshape(-1), dtype=np.float32)
        batch = float(magnitude.max())  # NaN if there is one
        if not math.isfinite(batch):
            raise CalibrationError(
                f"tensor {self.name!r} is not finite on a calibration sample; remove the samples "
                "that hold NaN or infinity, or check the preprocessing"
            )
        self.amax = max(self.amax, batch)
        self._maxima.append(batch)
        if batch < SMALLEST_AMAX:
            self._zeros += values.size
            return
        self._reach(batch)
        magnitude *= np.float32(1.0 / self.width)  # in bins from here on
        if magnitude.size < SAMPLED_FROM:
            self._counts += _histogram(magnitude)
            return
        tail = int(batch / self.width) // 2
        bulk = _histogram(magnitude[::BULK_STRIDE])[:tail] * BULK_STRIDE
        self._counts[:tail] += bulk
        self._counts[tail:] += _histogram(_at_least(magnitude, tail))[tail:]

    def merge(self, other: Observer) -> None:
        """Take in what another observer of this tensor saw, after what this one saw."""
        self.amax = max(self.amax, other.amax)
        self._maxima += other._maxima
        self._zeros += other._zeros
        if other.width == 0.0:
            return
        if self.width == 0.0:
            self.width = other.width
        added = other._counts.copy()
        for _ in range(round(math.log2(self.width / other.width))):
            added = _halved(added)
        while self.width < other.width:
            self._widen()
        self._counts += added

    def state(self) -> dict[str, AnyArray]:
        """Return everything it remembers, as arrays under the names of STATE."""
        figures = np.array([self.amax, self.width, self._zeros], np.float64)
        return {"counts": self._counts, "maxima": np.array(self._maxima), "figures": figures}

    @classmethod
    def from_state(cls, name: str, state: Mapping[str, AnyArray]) -> Observer:
        """Return the observer of that state; raises ValueError for arrays of other shapes."""
        seen = cls(name)
        amax, width, zeros = state["figures"]
        if state["counts"].shape != seen._counts.shape or state["maxima"].ndim != 1:
            raise ValueError(f"not the state of an observer: {name}")
        seen.amax, seen.width, seen._zeros = float(amax), float(width), int(zeros)
        seen._counts = state["counts"].astype(np.int64)
        seen._maxima = [float(value) for value in state["maxima"]]
        return seen

    def _reach(self, magnitude: float) -> None:
        """Widen the bins until they hold a magnitude."""
        if self.width == 0.0:
            self.width = 2.0 ** math.ceil(math.log2(magnitude / _BINS))
        while magnitude > self.width * _BINS:
            self._widen()

    def _widen(self) -> None:
        self._counts = _halved(self._counts)
        self.width *= 2


def _histogram(positions: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Return how many positions lie in each bin; those past the last one belong to it."""
    counts = np.bincount(positions.astype(np.intp), minlength=_BINS)
    counts[_BINS - 1] += counts[_BINS:].sum()
    return counts[:_BINS]


def _at_least(values: npt.NDArray[np.float32], bound: int) -> npt.NDArray[np.float32]:
    """Return, among others, every value that is not below a bound that few values reach.

    One look at the maxima of columns of 16 costs less than a look at every value.
    """
    whole = len(values) - len(values) % _COLUMN
    columns = values[:whole].reshape(_COLUMN, -1)
    reaching = np.flatnonzero(columns.max(axis=0) >= bound)
    return np.concatenate([columns.take(reaching, axis=1).reshape(-1), values[whole:]])


def _halved(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the counts in bins of twice the width, as many of them."""
    pairs = counts.reshape(-1, 2).sum(axis=1)
    return np.concatenate([pairs, np.zeros_like(pairs)])
