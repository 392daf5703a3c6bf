"""What calibration remembers of an activation: a range and a histogram, never the values."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from calibration.errors import CalibrationError
from edge.spec import AnyArray

HISTOGRAM_BINS = 2048
# Below this a tensor counts as zero: its scale would be too close to the smallest float.
SMALLEST_AMAX = 1e-30
MOVING_AVERAGE_WEIGHT = 0.1


class RangeObserver:
    """Largest magnitude of one tensor over all batches, and its moving average per batch."""

    __slots__ = ("amax", "moving_amax", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.amax = 0.0
        self.moving_amax: float | None = None

    @property
    def has_range(self) -> bool:
        """Whether any value was not zero."""
        return self.amax >= SMALLEST_AMAX

    def update(self, values: AnyArray) -> None:
        """Take in one batch; raises CalibrationError for NaN or infinity in it."""
        if values.size == 0:
            return
        batch = float(max(values.max(), -values.min()))
        if not np.isfinite(batch) or np.isnan(values.sum(dtype=np.float64)):
            raise CalibrationError(
                f"tensor {self.name!r} is not finite on a calibration sample; remove the samples "
                "that hold NaN or infinity, or check the preprocessing"
            )
        self.amax = max(self.amax, batch)
        previous = batch if self.moving_amax is None else self.moving_amax
        self.moving_amax = previous + MOVING_AVERAGE_WEIGHT * (batch - previous)


class HistogramObserver:
    """Counts of |x| in equal bins over [0, amax], amax being known from a first pass.

    counts: shape (HISTOGRAM_BINS,); bin i covers [i * width, (i + 1) * width).
    """

    __slots__ = ("counts", "width")

    def __init__(self, amax: float) -> None:
        self.width = amax / HISTOGRAM_BINS
        self.counts: npt.NDArray[np.int64] = np.zeros(HISTOGRAM_BINS, np.int64)

    def update(self, values: AnyArray) -> None:
        """Take in one batch; magnitudes beyond amax count in the last bin."""
        magnitude = np.abs(values.reshape(-1), dtype=np.float32)
        magnitude *= np.float32(1.0 / self.width)
        np.minimum(magnitude, np.float32(HISTOGRAM_BINS - 1), out=magnitude)
        self.counts += np.bincount(magnitude.astype(np.int32), minlength=HISTOGRAM_BINS)
