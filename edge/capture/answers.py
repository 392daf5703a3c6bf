"""Two answers to one request, compared as numbers: how far apart is each output?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from edge.errors import EdgeError, InputError
from edge.http_answer import unpacked
from edge.oip import JSON_LENGTH_HEADER
from edge.oip_client import outputs_from_answer
from edge.self_test import relative_error

WHOLE = "(whole answer)"
BEST_CLASS = "(best class)"
# Who answered is no part of the answer: another bundle is what one compares with.
_NOT_COMPARED = {"model_name", "model_version", "id"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Closeness:
    """When two answers of one model are alike.

    tolerance: relative error of each output. scores: the output of a classifier, of which the best
    class of every row counts instead.
    """

    tolerance: float
    scores: str | None = None


def errors_between(
    got: tuple[Mapping[str, str], bytes],
    reference: tuple[Mapping[str, str], bytes],
    *,
    max_bytes: int,
    scores: str | None = None,
) -> dict[str, float]:
    """Return the relative error of every output, by `self_test.relative_error`.

    scores: see `Closeness`; in place of that output, or of a document that names classes, stands
    BEST_CLASS, whose error is the share of rows with another best class.

    got, reference: headers (lower case) and body of two answers with status 200. An output that
    only one of them has, or in another shape or type, or whose texts differ, has an infinite error.
    Answers without tensors are compared as one document: its numbers as one tensor, all else must
    be equal.
    """
    if got[1] == reference[1] and _form(got[0]) == _form(reference[0]):
        try:
            return dict.fromkeys(_outputs(*got, max_bytes=max_bytes), 0.0)
        except EdgeError:
            return {WHOLE: 0.0}
    try:
        ours, theirs = (_outputs(*answer, max_bytes=max_bytes) for answer in (got, reference))
    except EdgeError:
        return {WHOLE: math.inf}
    errors = {}
    for name in {**theirs, **ours}:
        got_one, reference_one = ours.get(name), theirs.get(name)
        share = None
        if scores is not None and name in {scores, WHOLE}:
            share = _reclassified(got_one, reference_one)
        if share is None:
            errors[name] = _error(got_one, reference_one)
        else:
            errors[BEST_CLASS] = share
    return errors


def _error(got: object, reference: object) -> float:
    if isinstance(got, np.ndarray) and isinstance(reference, np.ndarray):
        if got.shape != reference.shape or got.dtype != reference.dtype:
            return math.inf
        if got.tobytes() == reference.tobytes():  # NaN is what it was
            return 0.0
        error = relative_error(got, reference)
        return math.inf if math.isnan(error) else error
    if isinstance(got, _Document) and isinstance(reference, _Document):
        if got.rest != reference.rest:
            return math.inf
        return relative_error(np.array(got.numbers), np.array(reference.numbers))
    is_same = type(got) is type(reference) and not isinstance(got, np.ndarray) and got == reference
    return 0.0 if is_same else math.inf


def _reclassified(got: object, reference: object) -> float | None:
    """Return the share of rows whose best class is another; None if one has no such rows."""
    arrays = [a for a in (got, reference) if isinstance(a, np.ndarray)]
    if len({array.shape for array in arrays}) > 1:
        return None
    ours, theirs = _best_classes(got), _best_classes(reference)
    if not ours or not theirs or len(ours) != len(theirs):
        return None
    return sum(a != b for a, b in zip(ours, theirs, strict=True)) / len(ours)


def _best_classes(answer: object) -> list[object] | None:
    """Return the best class of each row: of scores, or of what /predict says of a classifier."""
    if isinstance(answer, _Document):
        return answer.best
    if not isinstance(answer, np.ndarray) or answer.dtype.kind != "f" or answer.ndim != 2:
        return None
    if answer.size == 0 or not np.isfinite(answer).all():
        return None
    return list(answer.argmax(axis=1).tolist())


def _form(headers: Mapping[str, str]) -> tuple[str | None, ...]:
    return tuple(headers.get(name) for name in ("content-encoding", JSON_LENGTH_HEADER.lower()))


class _Document:
    """A JSON value as its numbers, in order, and what is left without them."""

    def __init__(self, value: object) -> None:
        self.numbers: list[float] = []
        self.best = _best_labels(value)
        self.rest = self._take(value)

    def _take(self, value: object) -> object:
        if isinstance(value, dict):
            return {key: self._take(item) for key, item in sorted(value.items())}
        if isinstance(value, list):
            return [self._take(item) for item in value]
        if isinstance(value, int | float) and not isinstance(value, bool):
            self.numbers.append(float(value))
            return 0
        return value


def _outputs(headers: Mapping[str, str], body: bytes, *, max_bytes: int) -> dict[str, object]:
    """Return tensors by name, or the whole document; raises EdgeError for what is neither."""
    body = unpacked(body, headers.get("content-encoding", ""), max_body_bytes=max_bytes)
    outputs = outputs_from_answer(headers, body)
    if outputs is not None:
        return dict(outputs)
    try:
        document = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InputError(f"the answer cannot be read: {error}") from error
    return {WHOLE: _Document({k: v for k, v in document.items() if k not in _NOT_COMPARED})}


def _best_labels(document: object) -> list[object] | None:
    if not isinstance(document, dict):
        return None
    try:
        return [row[0]["label"] for row in document["predictions"]]
    except (KeyError, IndexError, TypeError):
        return None
