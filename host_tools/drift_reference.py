"""The drift reference of a bundle: what a model is asked and answers before anybody uses it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from calibration.samples import Samples
from edge.bundle import blob_path
from edge.drift.reading import MAX_ROWS_TAKEN, MAX_VECTOR, Reader, Summary, Vocabulary
from edge.drift.reference import (
    FREQUENCIES,
    LEVELS,
    MAX_CLASSES,
    MAX_SAMPLE,
    MIN_SAMPLE,
    VERSION,
    FeatureSample,
    Reference,
    Whole,
    bytes_from_reference,
    reference_path,
)
from edge.files import read_capped
from edge.manifest import Model
from edge.spec import AnyArray, Feeds
from edge.text import Tokenizer
from host_tools.blobs import BlobStore

SEED = 2007
DRAWS = 200_000  # of the distance between equal samples; 20 of them are beyond the last level
MAX_SCANNED = 4096  # beyond it blocks of samples are read, not all
_BLOCK = 4

Run = Callable[[Feeds], dict[str, AnyArray]]
Floats = npt.NDArray[np.float32]


def add_reference(
    model: Model,
    samples: Samples,
    run: Run,
    store: BlobStore,
    root: Path,
    *,
    say: Callable[[str], None],
) -> None:
    """Store the reference of a model in a bundle in the making below root, and say so."""
    vocabulary = None
    if model.text is not None:
        artifact = store.artifact(model.text.tokenizer)
        content = read_capped(blob_path(root, artifact.sha256), max_bytes=artifact.size)
        vocabulary = Vocabulary(Tokenizer.open(content, model.text))
    reference = reference_of(model, samples, run, vocabulary)
    if reference is None:
        say(
            f"no drift reference: {samples.count} samples, {MIN_SAMPLE} are needed; "
            "--drift-data gives others"
        )
        return
    store.add(reference_path(model.name), bytes_from_reference(reference))
    say(f"drift reference: {reference.rows} samples, {len(reference.features)} features")


def reference_of(
    model: Model, samples: Samples, run: Run, vocabulary: Vocabulary | None
) -> Reference | None:
    """Return the reference that up to MAX_SAMPLE samples make, chosen at random with a fixed seed.

    run: the variant that will serve. None if there are fewer than MIN_SAMPLE samples: a comparison
    with so few would see large shifts alone.
    """
    rng = np.random.default_rng(SEED)
    reader = Reader(model, vocabulary)
    parts = []
    for feeds in _chosen(model, samples, rng):
        outputs = run(feeds)
        parts += _summaries(reader, feeds, outputs)
    rows = sum(len(part.features) for part in parts)
    if rows < MIN_SAMPLE:
        return None
    kept = np.sort(rng.permutation(rows)[:MAX_SAMPLE])
    features = np.concatenate([part.features for part in parts])[kept]
    labels = [part.classes for part in parts if part.classes is not None]
    vectors = _vectors(parts, kept)
    counts: tuple[int, ...] = ()
    if labels and reader.scores is not None and reader.scores.classes <= MAX_CLASSES:
        found = np.concatenate(labels)[kept]
        counts = tuple(map(int, np.bincount(found, minlength=reader.scores.classes)))
    return Reference(
        version=VERSION,
        rows=len(kept),
        features=tuple(
            FeatureSample(name=name, kind=kind, values=np.sort(values).astype("<f4").tobytes())
            for name, kind, values in zip(parts[0].names, parts[0].kinds, features.T, strict=True)
        ),
        classes=counts,
        whole=None if vectors is None else whole_of(vectors, rng),
    )


def whole_of(vectors: Floats, rng: np.random.Generator) -> Whole | None:
    """Return the random features of rows, and what chance makes of them; None for equal rows.

    The distance of the means of n and m equal rows is 1/n + 1/m times a sum of chi-square numbers,
    weighted by the eigenvalues of the features' covariance: Gretton et al. 2009.
    """
    center, scale = vectors.mean(axis=0), vectors.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    rows = ((vectors - center) / scale).astype(np.float64)
    squares = (rows**2).sum(axis=1)
    distances = np.sqrt(np.maximum(0, squares[:, None] + squares - 2 * rows @ rows.T))
    width = float(np.median(distances[np.triu_indices(len(rows), 1)]))
    if width <= 0:
        return None
    weights = rng.normal(size=(vectors.shape[1], FREQUENCIES)) / width / scale[:, None]
    offsets = rng.uniform(0, 2 * np.pi, FREQUENCIES) - center @ weights
    whole = Whole(
        values=vectors.shape[1],
        weights=weights.astype("<f4").tobytes(),
        offsets=offsets.astype("<f4").tobytes(),
        mean=b"",
        null=(),
        scale=1.0,
    )
    features = whole.features(vectors).astype(np.float64)
    eigenvalues = np.linalg.eigvalsh(np.cov(features.T))
    eigenvalues = eigenvalues[eigenvalues > 1e-6 * eigenvalues.max()]
    drawn = np.concatenate(
        [
            (rng.standard_normal((DRAWS // 20, len(eigenvalues))) ** 2) @ eigenvalues
            for _ in range(20)
        ]
    )
    return Whole(
        values=whole.values,
        weights=whole.weights,
        offsets=whole.offsets,
        mean=features.mean(axis=0).astype("<f4").tobytes(),
        null=tuple(float(np.quantile(drawn, 1 - level)) for level in LEVELS),
        scale=float(eigenvalues.max()),
    )


def _chosen(model: Model, samples: Samples, rng: np.random.Generator) -> Iterator[Feeds]:
    """Yield batches of samples from all over the set, of sizes that the model takes."""
    bounds = [b for b in model.profile.ranges.values() if b.min]
    least = max((b.min[0] for b in bounds), default=1)
    most = max(least, min([MAX_ROWS_TAKEN, *(b.max[0] for b in bounds)]))
    count = samples.count
    if count <= MAX_SCANNED:
        wanted = np.zeros(count, bool)
        wanted[rng.permutation(count)[:MAX_SAMPLE]] = True
        first = 0
        for feeds in samples.batches(most, 0, count):
            rows = len(next(iter(feeds.values())))
            if rows >= least and wanted[first : first + rows].any():
                # One row in ragged company is padded as it is there, and may run alone.
                part = wanted[first : first + rows] if least == 1 else slice(None)
                yield {name: values[part] for name, values in feeds.items()}
            first += rows
        return
    block = max(least, _BLOCK)
    for start in np.linspace(0, count - block, MAX_SAMPLE // block).astype(int):
        for feeds in samples.batches(block, int(start), int(start) + block):
            if len(next(iter(feeds.values()))) >= least:
                yield feeds


def _summaries(reader: Reader, feeds: Feeds, outputs: dict[str, AnyArray]) -> list[Summary]:
    rows = len(next(iter(feeds.values())))
    parts = []
    for first in range(0, rows, MAX_ROWS_TAKEN):
        some = slice(first, first + MAX_ROWS_TAKEN)
        taken = reader.take(
            {name: values[some] for name, values in feeds.items()},
            {name: values[some] if values.ndim else values for name, values in outputs.items()},
        )
        parts.append(reader.summary_of(taken))
    return parts


def _vectors(parts: list[Summary], kept: npt.NDArray[np.int64]) -> Floats | None:
    widths = {part.vectors.shape[1] for part in parts}
    width = next(iter(widths))
    if len(widths) > 1 or not 0 < width <= MAX_VECTOR:
        return None
    return np.concatenate([part.vectors for part in parts])[kept]
