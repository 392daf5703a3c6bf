"""What a model was like when it was packed: an optional artifact of its bundle.

It is found by its path, so that an agent that knows nothing of it opens the bundle all the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt

from edge.drift.reading import MAX_FEATURES, MAX_VECTOR, Kind
from edge.errors import BundleError

VERSION = 1
MAX_SAMPLE = 500
MIN_SAMPLE = 100
MAX_CLASSES = 100_000
MAX_REFERENCE_BYTES = 8 << 20
FREQUENCIES = 128
# The shares of chance for which a bundle holds the distance between two equal samples.
LEVELS = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 5e-4, 2e-4, 1e-4)

Floats = npt.NDArray[np.float32]
Positive = Annotated[float, msgspec.Meta(gt=0)]


def reference_path(model: str) -> str:
    """Return the artifact that holds the reference of a model."""
    return f"{model}/drift.msgpack"


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSample:
    """Values of one feature: sorted float32, little-endian."""

    name: Annotated[str, msgspec.Meta(max_length=256)]
    kind: Kind
    values: bytes

    @property
    def array(self) -> Floats:
        """The values."""
        return np.frombuffer(self.values, "<f4")


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """Rows as vectors, compared by the maximum mean discrepancy (MMD) with random features.

    The features of a row x are sqrt(2 / n) cos(x W + b): Rahimi and Recht 2007, "Random Features
    for Large-Scale Kernel Machines"; with a Gaussian kernel, as wide as rows are apart (median).
    The squared distance of the means of two samples is their MMD squared: Gretton et al. 2012, "A
    Kernel Two-Sample Test", Journal of Machine Learning Research 13.

    weights: W, shape (values, n), float32. offsets: b. mean: of the reference. null: what the
    distance, divided by 1/n + 1/m, exceeds by chance in the shares LEVELS. scale: its largest
    eigenvalue; beyond the last level chance falls as exp(-x / (2 scale)): Gretton et al. 2009, "A
    Fast, Consistent Kernel Two-Sample Test".
    """

    values: Annotated[int, msgspec.Meta(ge=1, le=MAX_VECTOR)]
    weights: bytes
    offsets: bytes
    mean: bytes
    null: tuple[float, ...]
    scale: Positive

    def features(self, vectors: Floats) -> Floats:
        """Return the random features of rows, shape (rows, FREQUENCIES)."""
        weights = np.frombuffer(self.weights, "<f4").reshape(self.values, FREQUENCIES)
        angles = vectors @ weights + np.frombuffer(self.offsets, "<f4")
        return np.asarray(np.sqrt(2 / FREQUENCIES) * np.cos(angles), np.float32)

    def distance(self, mean: npt.NDArray[np.float64]) -> float:
        """Return the squared MMD to rows whose features have this mean."""
        return float(((mean - np.frombuffer(self.mean, "<f4")) ** 2).sum())

    def p_value(self, distance: float, n: int, m: int) -> float:
        """Return how often two equal samples of n and m rows are this far apart."""
        value = distance / (1 / n + 1 / m)
        if value >= self.null[-1]:
            return LEVELS[-1] * math.exp(-(value - self.null[-1]) / (2 * self.scale))
        return float(np.exp(np.interp(value, self.null, np.log(LEVELS))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What a model was asked and answered when it was packed.

    rows: how many were looked at. classes: how many of them were given each class, empty for a
    model without.
    """

    version: int
    rows: Annotated[int, msgspec.Meta(ge=MIN_SAMPLE, le=MAX_SAMPLE)]
    features: Annotated[tuple[FeatureSample, ...], msgspec.Meta(max_length=MAX_FEATURES)]
    classes: Annotated[tuple[int, ...], msgspec.Meta(max_length=MAX_CLASSES)] = ()
    whole: Whole | None = None


_DECODER = msgspec.msgpack.Decoder(Reference)


def bytes_from_reference(reference: Reference) -> bytes:
    """Return the content of the artifact."""
    return msgspec.msgpack.encode(reference)


def reference_from_bytes(content: bytes) -> Reference:
    """Return the reference that content holds; raises BundleError for what no `pack` wrote."""
    if len(content) > MAX_REFERENCE_BYTES:
        raise BundleError(f"the drift reference is larger than {MAX_REFERENCE_BYTES} bytes")
    try:
        reference = _DECODER.decode(content)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BundleError(f"the drift reference is malformed: {error}; pack again") from error
    problem = _problem_with(reference)
    if problem is not None:
        raise BundleError(f"the drift reference is malformed: {problem}; pack again")
    return reference


def _problem_with(reference: Reference) -> str | None:
    if reference.version != VERSION:
        return f"it has version {reference.version}, this agent reads {VERSION}"
    names = [feature.name for feature in reference.features]
    if len(set(names)) < len(names):
        return "two features have the same name"
    for feature in reference.features:
        if len(feature.values) != 4 * reference.rows:
            return f"feature {feature.name!r} has not {reference.rows} values"
        values = feature.array
        if not np.isfinite(values).all() or (np.diff(values) < 0).any():
            return f"the values of {feature.name!r} are not sorted numbers"
    counts = reference.classes
    if counts and (min(counts) < 0 or sum(counts) != reference.rows):
        return f"its classes do not add up to {reference.rows} rows"
    return None if reference.whole is None else _problem_with_whole(reference.whole)


def _problem_with_whole(whole: Whole) -> str | None:
    sizes = (len(whole.weights), len(whole.offsets), len(whole.mean))
    n = 4 * FREQUENCIES
    if sizes != (whole.values * n, n, n):
        return "its random features do not fit together"
    null = np.array(whole.null)
    is_rising = len(null) == len(LEVELS) and bool((np.diff(null) >= 0).all())
    parts = [np.frombuffer(part, "<f4") for part in (whole.weights, whole.offsets, whole.mean)]
    are_finite = all(np.isfinite(part).all() for part in (*parts, null, np.array(whole.scale)))
    if not is_rising or not are_finite:
        return "its distances are not rising numbers"
    return None
