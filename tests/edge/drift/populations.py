"""Real rows in thousands, for splits without a shift and with one."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pydoc_data.topics import topics

import numpy as np

from edge import manifest as m
from edge.drift.comparing import Comparison, Window, compare
from edge.drift.reading import Reader, Summary, Vocabulary
from edge.drift.reference import VERSION, FeatureSample, Reference
from edge.images import ImagePreprocessing
from edge.spec import Feeds, Profile, ShapeRange, TensorSpec
from edge.text import TextPreprocessing
from host_tools.digits import load_digits_split
from host_tools.drift_reference import whole_of
from tests.bundles import affine_parts

LONGEST = 32


def model_of(**changes: object) -> m.Model:
    """Return a Model with other fields than those of `tests.bundles`."""
    import dataclasses

    return dataclasses.replace(affine_parts()[0].models[0], **changes)


def digits_model() -> m.Model:
    spec = TensorSpec(name="image", datatype="FP32", shape=("batch", 1, 32, 32))
    return model_of(
        inputs=(spec,),
        outputs=(TensorSpec(name="logits", datatype="FP32", shape=("batch", 10)),),
        profile=_profile({"image": (1, 32, 32)}),
        image=ImagePreprocessing(input="image", height=32, width=32, channels="L"),
    )


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return held-out and other images, their logits by a linear model, and their labels."""
    training, held_out = load_digits_split()
    images = np.concatenate([training.images, held_out.images])
    labels = np.concatenate([training.labels, held_out.labels])
    return images, digit_logits(images), labels


def digit_logits(images: np.ndarray) -> np.ndarray:
    """Return logits of a least-squares classifier that was fitted on half of the scans."""
    flat = images.reshape(len(images), -1)
    return (flat @ _weights() * 8).astype(np.float32)


@functools.cache
def _weights() -> np.ndarray:
    training, _ = load_digits_split()
    flat = training.images[::2].reshape(-1, 1024).astype(np.float64)
    targets = np.eye(10)[training.labels[::2]]
    return np.linalg.solve(flat.T @ flat + 10 * np.eye(1024), flat.T @ targets)


def text_model() -> m.Model:
    specs = tuple(
        TensorSpec(name=name, datatype="INT64", shape=("batch", "tokens"))
        for name in ("ids", "mask")
    )
    return model_of(
        inputs=specs,
        outputs=(TensorSpec(name="vector", datatype="FP32", shape=("batch", 16)),),
        profile=_profile({"ids": (LONGEST,), "mask": (LONGEST,)}),
        text=TextPreprocessing(tokenizer="t", ids="ids", mask="mask", max_tokens=LONGEST),
        embedding="vector",
    )


def tokenizer_of(texts: list[str]) -> object:
    """Return a byte-level BPE tokenizer that was trained on texts."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel()
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2000, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator(texts, trainer)
    return library


@functools.cache
def english() -> tuple[str, ...]:
    """Return lines of the topics of Python's help."""
    lines = [line.strip() for text in topics.values() for line in text.splitlines()]
    return tuple(dict.fromkeys(line for line in lines if len(line) > 30))


def text_feeds(library: object, lines: list[str]) -> Feeds:
    rows = [encoding.ids[:LONGEST] for encoding in library.encode_batch(lines)]  # type: ignore[attr-defined]
    ids = np.zeros((len(rows), LONGEST), np.int64)
    mask = np.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row)], mask[number, : len(row)] = row, 1
    return {"ids": ids, "mask": mask}


def text_vectors(feeds: Feeds) -> np.ndarray:
    """Return the mean of a fixed random vector for each token: a bag of words."""
    table = np.random.default_rng(5).normal(size=(4000, 16))
    weights = feeds["mask"][..., None]
    total = (table[feeds["ids"]] * weights).sum(axis=1)
    return (total / feeds["mask"].sum(axis=1, keepdims=True)).astype(np.float32)


def summary_of(
    model: m.Model, feeds: Feeds, outputs: Feeds, vocabulary: Vocabulary | None = None
) -> Summary:
    """Return the summary of any number of rows."""
    reader = Reader(model, vocabulary)
    rows = len(next(iter(feeds.values())))
    parts = []
    for first in range(0, rows, 16):
        some = slice(first, first + 16)
        taken = reader.take(
            {name: values[some] for name, values in feeds.items()},
            {name: values[some] for name, values in outputs.items()},
        )
        parts.append(reader.summary_of(taken))
    has_classes = parts[0].classes is not None
    return Summary(
        names=parts[0].names,
        kinds=parts[0].kinds,
        features=np.concatenate([part.features for part in parts]),
        classes=np.concatenate([part.classes for part in parts]) if has_classes else None,
        vectors=np.concatenate([part.vectors for part in parts]),
    )


def reference_of(summary: Summary, rows: np.ndarray, *, classes: int = 0) -> Reference:
    """Return the reference that some rows make, as `host_tools.drift_reference` does of samples."""
    features = summary.features[rows]
    counts: tuple[int, ...] = ()
    if summary.classes is not None:
        counts = tuple(map(int, np.bincount(summary.classes[rows], minlength=classes)))
    return Reference(
        version=VERSION,
        rows=len(rows),
        features=tuple(
            FeatureSample(name=name, kind=kind, values=np.sort(column).astype("<f4").tobytes())
            for name, kind, column in zip(summary.names, summary.kinds, features.T, strict=True)
        ),
        classes=counts,
        whole=whole_of(summary.vectors[rows], np.random.default_rng(3)),
    )


def window_of(summary: Summary, rows: np.ndarray, reference: Reference) -> Window:
    whole = reference.whole
    assert whole is not None
    return Window(
        names=summary.names,
        features=summary.features[rows],
        classes=None if summary.classes is None else summary.classes[rows],
        whole_mean=whole.features(summary.vectors[rows]).mean(axis=0, dtype=np.float64),
        whole_rows=len(rows),
    )


def splits(
    summary: Summary, *, references: int, windows: int, level: float, seed: int, classes: int = 0
) -> Iterator[tuple[Comparison, ...]]:
    """Yield comparisons of rows that were drawn at random, without a shift.

    Each reference of 500 rows is compared with so many windows of 200 others.
    """
    rng = np.random.default_rng(seed)
    count = len(summary.features)
    for _ in range(references):
        order = rng.permutation(count)
        reference = reference_of(summary, order[:500], classes=classes)
        for _ in range(windows):
            rows = rng.choice(order[500:], 200, replace=False)
            yield compare(reference, window_of(summary, rows, reference), level=level)


def _profile(rows: dict[str, tuple[int, ...]]) -> Profile:
    ranges = {
        name: ShapeRange(min=(1, *row), opt=(1, *row), max=(16, *row)) for name, row in rows.items()
    }
    return Profile(ranges=ranges)
