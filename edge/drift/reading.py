"""What is looked at of requests and answers: a few numbers a row, the same on host and device.

`take` is what a request pays for: copies of small parts of its tensors. `summary_of` makes the
numbers of them later, elsewhere.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edge.manifest import Model
from edge.spec import AnyArray, Feeds, TensorSpec
from edge.text import Tokenizer

Kind = Literal["input", "output"]
Floats = npt.NDArray[np.float32]

MAX_FEATURES = 64
MAX_ROWS_TAKEN = 16  # of one request
MAX_COLUMNS = 16  # of a tensor whose columns are features of their own
MAX_VALUES = 1024  # of a tensor, evenly spaced, for its mean and the like
MAX_VECTOR = 4096
GRID, PATCH = 16, 32  # pixels a side: spread over the image, and in a piece at its centre
_QUANTILES = (0.05, 0.5, 0.95)
_SCORES = frozenset({"logits", "probabilities", "probs", "scores"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """The output with a score for each class. softmax: whether they are logits."""

    output: str
    classes: int
    softmax: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """Parts of the tensors of one request, by what `Reader.take` wanted of them."""

    rows: int
    inputs: dict[str, AnyArray]
    outputs: dict[str, AnyArray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What some rows are like.

    features: shape (rows, features), with a name and a kind each. classes: the most probable class
    of each row, None without scores. vectors: shape (rows, values), what is compared as a whole.
    """

    names: tuple[str, ...]
    kinds: tuple[Kind, ...]
    features: Floats
    classes: npt.NDArray[np.int64] | None
    vectors: Floats


class Vocabulary:
    """Of every token id: the length of its text, and whether that is beyond ASCII.

    unknown: the id that stands for what has none, None if there is no such id.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        texts = tokenizer.texts_of_ids()
        self.unknown = tokenizer.unknown_id
        self.lengths = np.array([len(text.strip()) for text in texts], np.float32)
        self.is_foreign = np.array([not text.isascii() for text in texts])


def scores_of(model: Model) -> Scores | None:
    """Return which output of a model holds scores: as its bundle says, or as its name does."""
    if model.classes is not None:
        how = model.classes
        return Scores(output=how.output, classes=len(how.labels), softmax=how.softmax)
    if len(model.outputs) != 1 or model.detection is not None or model.embedding is not None:
        return None
    spec = model.outputs[0]
    columns = spec.shape[1] if len(spec.shape) == 2 else None
    if spec.name not in _SCORES or not isinstance(columns, int) or columns < 2:
        return None
    return Scores(output=spec.name, classes=columns, softmax=spec.name in {"logits", "scores"})


class Reader:
    """How the rows of one model are summarised. Without a vocabulary some of text is left out."""

    def __init__(self, model: Model, vocabulary: Vocabulary | None = None) -> None:
        self.scores = scores_of(model)
        self._model = model
        self._vocabulary = vocabulary
        self._inputs = [spec for spec in model.inputs if is_batched(spec)]
        others = {model.embedding, None if self.scores is None else self.scores.output}
        outputs = [spec for spec in model.outputs if spec.name not in others]
        self._outputs = [s for s in outputs if is_batched(s) and s.datatype.startswith("FP")]

    def take(self, feeds: Feeds, outputs: Mapping[str, AnyArray]) -> Taken:
        """Return copies of what is looked at; costs microseconds, and keeps no request alive."""
        model = self._model
        rows = min(MAX_ROWS_TAKEN, len(next(iter(feeds.values()))))
        inputs: dict[str, AnyArray] = {}
        if model.image is not None:
            image = feeds[model.image.input][:rows]
            if model.image.layout == "NHWC":
                image = np.moveaxis(image, -1, 1)
            height, width = image.shape[2:]
            grid = image[:, :, :: -(-height // GRID), :: -(-width // GRID)]
            top, left = max(0, (height - PATCH) // 2), max(0, (width - PATCH) // 2)
            patch = image[:, :, top : top + PATCH, left : left + PATCH]
            inputs = {"grid": grid.astype(np.float32), "patch": patch.astype(np.float32)}
        elif model.text is not None:
            names = {"ids": model.text.ids, "mask": model.text.mask}
            inputs = {key: feeds[name][:rows].copy() for key, name in names.items() if name}
            inputs.setdefault("mask", inputs["ids"] != model.text.pad)
        else:
            inputs = {spec.name: _spaced(feeds[spec.name], rows) for spec in self._inputs}
        answers = {spec.name: _spaced(outputs[spec.name], rows) for spec in self._outputs}
        for name in (None if self.scores is None else self.scores.output, model.embedding):
            if name is not None:
                answers[name] = outputs[name][:rows, :MAX_VECTOR].astype(np.float32)
        return Taken(rows=rows, inputs=inputs, outputs=answers)

    def summary_of(self, taken: Taken) -> Summary:
        """Return what the rows that were taken are like."""
        model, columns = self._model, _Columns()
        classes = None
        if self.scores is not None:  # first, for inputs with many columns leave no room
            classes = _score_features(columns, taken.outputs[self.scores.output], self.scores)
        if model.image is not None:
            _image_features(columns, taken.inputs["grid"], taken.inputs["patch"])
        elif model.text is not None:
            _text_features(columns, taken.inputs["ids"], taken.inputs["mask"], self._vocabulary)
        else:
            for spec in self._inputs:
                _tensor_features(columns, "input", spec, taken.inputs[spec.name])
        for spec in self._outputs:
            _tensor_features(columns, "output", spec, taken.outputs[spec.name])
        features = columns.array(taken.rows)
        if model.embedding is not None:
            vectors = np.asarray(taken.outputs[model.embedding], np.float32)
        elif model.image is not None:
            vectors = taken.inputs["grid"].reshape(taken.rows, -1)
        else:
            vectors = features
        return Summary(
            names=tuple(columns.names),
            kinds=tuple(columns.kinds),
            features=features,
            classes=classes,
            vectors=vectors,
        )


class _Columns:
    """Features as they are added, MAX_FEATURES at most."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.kinds: list[Kind] = []
        self._values: list[AnyArray] = []

    def add(self, kind: Kind, name: str, values: AnyArray) -> None:
        if len(self.names) < MAX_FEATURES:
            self.names.append(name)
            self.kinds.append(kind)
            self._values.append(values)

    def array(self, rows: int) -> Floats:
        if not self._values:
            return np.zeros((rows, 0), np.float32)
        array = np.stack(self._values, axis=1).astype(np.float32)
        return np.nan_to_num(array, posinf=3e38, neginf=-3e38)


def is_batched(spec: TensorSpec) -> bool:
    """Whether a tensor has a row for each of a request's."""
    return bool(spec.shape) and isinstance(spec.shape[0], str)


def _spaced(tensor: AnyArray, rows: int) -> AnyArray:
    """Return (rows, values): all of a row, or MAX_VALUES of it with even gaps."""
    part = tensor[:rows]
    count = 1
    for side in part.shape[1:]:
        count *= side
    if count <= MAX_VALUES:
        return np.array(part.reshape(len(part), count))
    places = _places(count)
    return np.stack([row.reshape(-1)[places] for row in part])


@functools.lru_cache(maxsize=64)
def _places(count: int) -> npt.NDArray[np.int64]:
    # Not a fixed stride: it would meet the same column of every line.
    return np.linspace(0, count - 1, MAX_VALUES).astype(np.int64)


def _image_features(columns: _Columns, grid: AnyArray, patch: AnyArray) -> None:
    rows, channels = grid.shape[:2]
    pixels = grid.reshape(rows, channels, -1)
    grey = pixels.mean(axis=1)
    columns.add("input", "brightness", grey.mean(axis=1))
    columns.add("input", "contrast", grey.std(axis=1))
    if channels > 1:
        for number in range(channels):
            columns.add("input", f"mean[{number}]", pixels[:, number].mean(axis=1))
            columns.add("input", f"std[{number}]", pixels[:, number].std(axis=1))
    for share, values in zip(_QUANTILES, np.quantile(grey, _QUANTILES, axis=1), strict=True):
        columns.add("input", f"quantile[{share:g}]", values)
    columns.add("input", "sharpness", _sharpness(patch.mean(axis=1)))


def _sharpness(grey: AnyArray) -> AnyArray:
    """Return the variance of the Laplacian of each image, shape (rows, height, width).

    Source: Pech-Pacheco et al. 2000, "Diatom autofocusing in brightfield microscopy".
    """
    if min(grey.shape[1:]) < 3:
        return np.zeros(len(grey), np.float32)
    middle = grey[:, 1:-1, 1:-1]
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    return np.asarray((around - 4 * middle).var(axis=(1, 2)))


def _text_features(
    columns: _Columns, ids: AnyArray, mask: AnyArray, vocabulary: Vocabulary | None
) -> None:
    is_token = mask != 0
    counts = np.maximum(1, is_token.sum(axis=1))
    columns.add("input", "tokens", counts)
    # Tokenizers number frequent tokens first: text of another kind has higher numbers.
    columns.add("input", "token rank", (np.log1p(np.abs(ids)) * is_token).sum(axis=1) / counts)
    padded = np.sort(np.where(is_token, ids, -1), axis=1)
    distinct = (np.diff(padded, axis=1, prepend=-1) != 0).sum(axis=1)
    columns.add("input", "distinct tokens", distinct / counts)
    if vocabulary is None:
        return
    known = np.clip(ids, 0, len(vocabulary.lengths) - 1)
    characters = (vocabulary.lengths[known] * is_token).sum(axis=1)
    columns.add("input", "characters per token", characters / counts)
    foreign = (vocabulary.is_foreign[known] & is_token).sum(axis=1)
    columns.add("input", "beyond ASCII", foreign / counts)
    if vocabulary.unknown is not None:
        unknown = ((ids == vocabulary.unknown) & is_token).sum(axis=1)
        columns.add("input", "unknown tokens", unknown / counts)


def _tensor_features(columns: _Columns, kind: Kind, spec: TensorSpec, tensor: AnyArray) -> None:
    if spec.datatype == "BYTES":
        texts = [[bytes(value) for value in row] for row in tensor]
        sizes = np.array([sum(map(len, row)) for row in texts])
        beyond = np.array([sum(c > 127 for value in row for c in value) for row in texts])
        columns.add(kind, f"{spec.name} bytes", sizes)
        columns.add(kind, f"{spec.name} beyond ASCII", beyond / np.maximum(1, sizes))
        return
    values = tensor.astype(np.float32)
    if values.shape[1] == 0:
        return
    if values.shape[1] <= MAX_COLUMNS and all(isinstance(side, int) for side in spec.shape[1:]):
        for number in range(values.shape[1]):
            columns.add(kind, f"{spec.name}[{number}]", values[:, number])
        return
    columns.add(kind, f"{spec.name} mean", values.mean(axis=1))
    columns.add(kind, f"{spec.name} std", values.std(axis=1))
    columns.add(kind, f"{spec.name} min", values.min(axis=1))
    columns.add(kind, f"{spec.name} max", values.max(axis=1))


def _score_features(columns: _Columns, scores: AnyArray, how: Scores) -> npt.NDArray[np.int64]:
    """Add top-1 confidence and entropy (nats), and return the most probable classes."""
    shares = scores.astype(np.float64)
    if how.softmax:
        shares = np.exp(shares - shares.max(axis=1, keepdims=True))
    shares = np.clip(shares, 1e-12, None)
    shares /= shares.sum(axis=1, keepdims=True)
    columns.add("output", "confidence", shares.max(axis=1))
    columns.add("output", "entropy", -(shares * np.log(shares)).sum(axis=1))
    return np.asarray(scores.argmax(axis=1), np.int64)
