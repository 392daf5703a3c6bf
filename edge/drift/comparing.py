"""A window of requests against the reference: one verdict over all that is compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edge.drift.hypothesis import bonferroni, class_test, ks_p_value, ks_statistic, psi
from edge.drift.reference import Reference

What = Literal["input", "output", "classes", "whole"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Rows that were served. names: of the columns of features, shape (rows, features).

    classes: None for a model without. whole_mean: of the random features of whole_rows rows.
    """

    names: tuple[str, ...]
    features: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int64] | None
    whole_mean: npt.NDArray[np.float64] | None = None
    whole_rows: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One test.

    statistic: 0 for equal samples; a Kolmogorov-Smirnov distance for a feature, the total variation
    distance for classes, the MMD squared for whole rows. psi: of a feature.
    """

    name: str
    kind: What
    statistic: float
    p_value: float
    psi: float | None
    drifted: bool


def compare(reference: Reference, window: Window, *, level: float) -> tuple[Comparison, ...]:
    """Return every test, the least likely first.

    level: share of the windows without drift in which any test fails (Bonferroni).
    """
    found: list[tuple[str, What, float, float, float | None]] = []
    rows = len(window.features)
    places = {name: number for number, name in enumerate(window.names)}
    for feature in reference.features:
        if feature.name in places:
            before, now = feature.array, np.sort(window.features[:, places[feature.name]])
            statistic = ks_statistic(before, now)
            p_value = ks_p_value(statistic, len(before), rows)
            found.append((feature.name, feature.kind, statistic, p_value, psi(before, now)))
    if reference.classes and window.classes is not None:
        before_counts = np.array(reference.classes, np.int64)
        counts = np.bincount(window.classes, minlength=len(before_counts))
        found.append(("classes", "classes", *class_test(before_counts, counts), None))
    if reference.whole is not None and window.whole_mean is not None:
        distance = reference.whole.distance(window.whole_mean)
        p_value = reference.whole.p_value(distance, reference.rows, window.whole_rows)
        found.append(("whole rows", "whole", distance, p_value, None))
    failed = bonferroni([p for _, _, _, p, _ in found], level)
    comparisons = [
        Comparison(
            name=name,
            kind=kind,
            statistic=round(statistic, 6),
            p_value=p_value,
            psi=None if index is None else round(index, 4),
            drifted=bool(has_failed),
        )
        for (name, kind, statistic, p_value, index), has_failed in zip(found, failed, strict=True)
    ]
    return tuple(sorted(comparisons, key=lambda c: (c.p_value, -c.statistic)))
