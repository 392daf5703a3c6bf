"""From text to a Calibration: how each activation of a chat model is scaled, and how it is rounded.

The model runs in float32 layer by layer (see `layerwise` for the memory). For every site some
factors are tried, made from the size of its channels, and those are kept under which the outputs
of the rounded layers are nearest to what they were, on activations of the text. None at all are
tried too, so that calibration does not harm where it cannot help.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from calibration.errors import CalibrationError
from edge.errors import UsageError
from host_tools.chat.layerwise import HEAD, IntArray, Layer, embedded, final_norm, head_matrix
from host_tools.chat.llm_spec import LlmSpec, llm_spec_from_folder
from host_tools.chat.quantize import rounded_activations, rounded_int4, rounded_int8
from host_tools.chat.scaling import (
    Activations,
    Calibration,
    Quantized,
    Site,
    site_of_head,
    sites_of_layer,
)
from host_tools.chat.weights import Checkpoint, FloatArray, Weights
from host_tools.graph import Say

SAMPLES = 256  # positions whose activations are kept to compare outputs at
SEARCHED_ROWS = 512  # outputs of a site that are compared
EXPONENTS = tuple(i / 10 for i in range(1, 11))
MIGRATIONS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
# A token beyond the range is lost, a wider range costs next to nothing: for what no text showed.
HEADROOM = 1.15
# Beyond this a factor would only move the problem elsewhere, or a norm out of FP16.
LARGEST_FACTOR = 256.0


def calibrate_chat(
    folder: Path,
    windows: IntArray,
    kind: Quantized,
    *,
    weights: Weights | None = None,
    say: Say = lambda line: None,
) -> Calibration:
    """Return the calibration of a Hugging Face folder for one type of weights.

    windows: tokens of text like that which the model will read, [N, S], see
    `quality.token_windows`. weights: those that are written, if not the folder's own.
    Raises UsageError for tokens that the model does not have, ExportError as the writer does.
    """
    spec = llm_spec_from_folder(folder)
    if not 0 <= int(windows.min()) <= int(windows.max()) < spec.vocabulary:
        raise UsageError(
            f"token {windows.max()} is beyond the vocabulary of {spec.vocabulary}; "
            "use the model's tokenizer"
        )
    if weights is None:
        weights = Checkpoint.from_folder(folder)
    sites: dict[str, Activations] = {}
    hidden = embedded(weights, windows)
    for index in range(spec.layers):
        layer = Layer(spec, weights, index)
        say(f"calibrating layer {index + 1} of {spec.layers}")
        found = {site.name: _Seen(windows.size) for site in sites_of_layer(spec, index)}
        layer.run(hidden, lambda name, x, found=found: found[name].add(x))  # type: ignore[misc]
        for site in sites_of_layer(spec, index):
            matrices = [layer.matrix(reader) for reader in site.readers]
            sites[site.name] = _calibrated(site, matrices, found[site.name], kind)
    seen = _Seen(windows.size)
    final_norm(spec, weights, hidden, lambda name, x: seen.add(x))
    sites[HEAD] = _calibrated(site_of_head(), [_some_rows_of_head(spec, weights)], seen, kind)
    return Calibration(weights=kind, sites=sites)


class _Seen:
    """Sums over all positions, and the activations at some."""

    def __init__(self, positions: int) -> None:
        self._every = max(1, positions // SAMPLES)
        self._count = 0
        self._squares: FloatArray | float = 0.0
        self._largest: FloatArray | float = 0.0
        self._samples: list[FloatArray] = []

    def add(self, x: FloatArray) -> None:
        """Look at activations [S, inputs]."""
        self._squares = self._squares + np.square(x).sum(axis=0)
        self._largest = np.maximum(self._largest, np.abs(x).max(axis=0))
        self._samples.append(x[-self._count % self._every :: self._every].copy())
        self._count += len(x)

    @property
    def squares(self) -> FloatArray:
        """Mean square of each channel."""
        return np.asarray(self._squares / max(1, self._count), np.float32)

    @property
    def largest(self) -> FloatArray:
        """Largest magnitude of each channel."""
        return np.asarray(self._largest, np.float32)

    @property
    def samples(self) -> FloatArray:
        """Activations at some positions, [samples, inputs]."""
        return np.concatenate(self._samples)


def _calibrated(
    site: Site, matrices: list[FloatArray], seen: _Seen, kind: Quantized
) -> Activations:
    matrix, x = _some_rows(matrices), seen.samples
    wanted = x @ matrix.T
    if not np.isfinite(wanted).all():
        raise CalibrationError(
            f"{site.name}: what it computes is not finite; the weights are damaged"
        )
    best, least = None, np.inf
    for factors in _candidates(site, matrix, seen, kind):
        tried = Activations(
            factors=factors,
            importance=(seen.squares / np.square(factors)).astype(np.float32),
            amax=HEADROOM * float((seen.largest / factors).max()),
        )
        error = _error(matrix, x, wanted, tried, kind)
        if best is None or error < least:
            best, least = tried, error
    assert best is not None  # noqa: S101 - no factors at all are among the candidates
    return best


def _candidates(
    site: Site, matrix: FloatArray, seen: _Seen, kind: Quantized
) -> Iterator[FloatArray]:
    yield np.ones(matrix.shape[1], np.float32)
    if kind == "w8a8":
        # What was small in this text may be large in another, and would leave the range then.
        largest = site.shared(seen.largest)
        activations = _positive(np.maximum(largest, np.median(largest)))
        weights = _positive(site.shared(np.abs(matrix).max(axis=0)))
        for share in MIGRATIONS:
            yield _centred(activations**share / weights ** (1 - share))
        return
    activations = _positive(site.shared(np.sqrt(seen.squares)))
    weights = _positive(site.shared(np.sqrt(np.square(matrix).mean(axis=0))))
    for exponent in EXPONENTS:
        yield _centred(activations**exponent)
        yield _centred(activations**exponent / weights ** (1 - exponent))


def _error(
    matrix: FloatArray, x: FloatArray, wanted: FloatArray, tried: Activations, kind: Quantized
) -> float:
    scaled = matrix * tried.factors
    rounded = rounded_int4(scaled, tried.importance) if kind == "int4" else rounded_int8(scaled)
    x = x / tried.factors
    if kind == "w8a8":
        x = rounded_activations(x, tried.amax)
    return float(np.square(x @ rounded.T - wanted).sum())


def _positive(channels: FloatArray) -> FloatArray:
    """Return sizes none of which is 0: a channel that was never seen is taken for a small one."""
    largest = channels.max()
    smallest = largest * np.float32(1e-4) if largest > 0 else np.float32(1)
    positive: FloatArray = np.maximum(channels, smallest)
    return positive


def _centred(factors: FloatArray) -> FloatArray:
    """Return factors around 1, none of them extreme."""
    middle = np.exp(np.log(factors).mean())
    clipped: FloatArray = np.clip(factors / middle, 1 / LARGEST_FACTOR, LARGEST_FACTOR)
    return clipped.astype(np.float32)


def _some_rows(matrices: list[FloatArray]) -> FloatArray:
    """Return rows of all the matrices, evenly, at most about SEARCHED_ROWS."""
    rows = sum(len(matrix) for matrix in matrices)
    every = max(1, rows // SEARCHED_ROWS)
    return np.concatenate([matrix[::every] for matrix in matrices])


def _some_rows_of_head(spec: LlmSpec, weights: Weights) -> FloatArray:
    name = head_matrix(spec)
    rows = np.linspace(0, spec.vocabulary - 1, min(spec.vocabulary, SEARCHED_ROWS)).astype(int)
    return np.concatenate([weights.rows(name, int(row), int(row) + 1) for row in rows])
