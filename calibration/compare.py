"""How far one model's outputs are from another's, over many batches, without keeping them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edge.spec import AnyArray

_SILENT_DB = 200.0


@dataclass(slots=True)
class Comparison:
    """Running comparison of one output; `update` takes batches, the properties give the verdict."""

    signal: float = 0.0
    noise: float = 0.0
    agreed: int = 0
    rows: int = 0
    cosines: list[npt.NDArray[np.float64]] = field(default_factory=list)

    def update(self, actual: AnyArray, reference: AnyArray, rows: int) -> None:
        """Take in one batch of outputs; where axis 0 is not the rows, it counts as one row."""
        rows = rows if reference.ndim and len(reference) == rows else 1
        a = actual.reshape(rows, -1).astype(np.float64)
        r = reference.reshape(rows, -1).astype(np.float64)
        self.signal += float(np.square(r).sum())
        self.noise += float(np.square(a - r).sum())
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(r, axis=1)
        dots = np.einsum("ij,ij->i", a, r)
        are_equal = (a == r).all(axis=1)  # two rows of zeros point the same way
        cosines = np.where(norms > 0, dots / np.where(norms > 0, norms, 1.0), 0.0)
        self.cosines.append(np.where(are_equal, 1.0, cosines))
        self.agreed += int((a.argmax(axis=1) == r.argmax(axis=1)).sum())
        self.rows += len(a)

    @property
    def sqnr_db(self) -> float:
        """10 log10(signal / noise), within 200 dB; the lowest for a result that is not finite."""
        if not np.isfinite(self.noise):
            return -_SILENT_DB
        if self.noise <= 0 or self.signal <= 0:
            return _SILENT_DB if self.noise <= 0 else -_SILENT_DB
        db = float(10 * np.log10(self.signal / self.noise))
        return max(-_SILENT_DB, min(db, _SILENT_DB))

    @property
    def cosine_mean(self) -> float:
        """Mean over rows of the cosine between actual and reference."""
        return float(np.concatenate(self.cosines).mean())

    @property
    def cosine_min(self) -> float:
        """The row that turned furthest."""
        return float(np.concatenate(self.cosines).min())

    @property
    def agreement_percent(self) -> float:
        """Share of rows whose largest value is in the same place."""
        return 100.0 * self.agreed / self.rows
