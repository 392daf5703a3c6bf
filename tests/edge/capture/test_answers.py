"""How far two answers are apart, against numpy."""

from __future__ import annotations

import json
import math
import zlib
from typing import Any

import numpy as np
import pytest

from edge.capture.answers import BEST_CLASS, WHOLE, errors_between
from edge.oip import JSON_LENGTH_HEADER
from edge.spec import datatype_from_numpy

CAP = 1 << 20
Answer = tuple[dict[str, str], bytes]


def answer(arrays: dict[str, np.ndarray], *, binary: bool, version: str = "1") -> Answer:
    outputs: list[dict[str, Any]] = []
    tail = b""
    for name, array in arrays.items():
        output: dict[str, Any] = {
            "name": name,
            "datatype": datatype_from_numpy(array.dtype),
            "shape": array.shape,
        }
        if binary:
            output["parameters"] = {"binary_data_size": array.nbytes}
            tail += array.tobytes()
        else:
            output["data"] = array.ravel().tolist()
        outputs.append(output)
    head = json.dumps({"model_name": "m", "model_version": version, "outputs": outputs}).encode()
    return ({JSON_LENGTH_HEADER.lower(): str(len(head))} if binary else {}), head + tail


def document(value: object) -> Answer:
    return {}, json.dumps(value).encode()


def compare(got: Answer, reference: Answer) -> dict[str, float]:
    return errors_between(got, reference, max_bytes=CAP)


Y = np.linspace(-3, 5, 12, dtype=np.float32).reshape(3, 4)
LABELS = np.array([3, 1, 2], np.int64)


@pytest.mark.parametrize("binary", [True, False])
def test_each_output_has_its_relative_error(binary: bool) -> None:
    changed = Y + np.float32(0.01)
    found = compare(
        answer({"y": changed, "c": LABELS}, binary=binary, version="2"),
        answer({"y": Y, "c": LABELS}, binary=binary),
    )
    expected = np.linalg.norm(changed.astype(float) - Y) / np.linalg.norm(Y.astype(float))
    assert found == {"y": pytest.approx(expected, rel=1e-9), "c": 0.0}


def test_json_and_binary_of_the_same_values_agree() -> None:
    same = compare(answer({"y": Y}, binary=True), answer({"y": Y}, binary=False))
    assert same == {"y": 0.0}


def test_a_packed_answer_is_unpacked() -> None:
    headers, body = answer({"y": Y}, binary=True)
    packed = {**headers, "content-encoding": "deflate"}, zlib.compress(body)
    assert compare(packed, (headers, body)) == {"y": 0.0}


@pytest.mark.parametrize(
    "other",
    [
        {"y": Y.reshape(4, 3)},
        {"y": Y.astype(np.float64)},
        {"z": Y},
        {"y": np.full_like(Y, np.nan)},
    ],
)
def test_what_has_no_distance_is_infinitely_far(other: dict[str, np.ndarray]) -> None:
    found = compare(answer(other, binary=True), answer({"y": Y}, binary=True))
    assert found["y"] == math.inf


def test_nan_that_was_there_before_is_no_difference() -> None:
    values = np.array([np.nan, 1], np.float32)
    twice = compare(
        answer({"y": values}, binary=True, version="2"), answer({"y": values}, binary=True)
    )
    assert twice == {"y": 0.0}


def test_predictions_are_compared_as_numbers_and_names() -> None:
    def predicted(name: str, score: float) -> Answer:
        return document(
            {
                "model_name": "m",
                "model_version": str(score),
                "predictions": [[{"class": name, "index": 3, "score": score}]],
            }
        )

    expected = 0.04 / np.linalg.norm([3, 0.5])  # the index is a number like the score
    near = compare(predicted("cat", 0.54), predicted("cat", 0.5))
    assert near == {WHOLE: pytest.approx(expected)}
    assert compare(predicted("dog", 0.5), predicted("cat", 0.5)) == {WHOLE: math.inf}


@pytest.mark.parametrize("binary", [True, False])
def test_texts_are_equal_or_not(binary: bool) -> None:
    def told(*words: str) -> Answer:
        output: dict[str, Any] = {"name": "t", "datatype": "BYTES", "shape": [2]}
        if not binary:
            return document({"id": words[0], "outputs": [{**output, "data": words}]})
        tail = b"".join(len(word).to_bytes(4, "little") + word.encode() for word in words)
        output["parameters"] = {"binary_data_size": len(tail)}
        head = json.dumps({"id": words[0], "outputs": [output]}).encode()
        return {JSON_LENGTH_HEADER.lower(): str(len(head))}, head + tail

    assert compare(told("a", "b"), told("a", "b")) == {"t": 0.0}
    assert compare(told("a", "b"), told("a", "c")) == {"t": math.inf}


@pytest.mark.parametrize(
    "hostile",
    [
        b"",
        b"[1]",
        b"{",
        b'{"outputs": 1}',
        b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [9000000000], "data": [1]}]}',
        b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [-1], "data": [1]}]}',
        b'{"a": ' + b"[" * 100_000,
        b'{"outputs":[{"name":"y","datatype":"FP32","shape":[-2,-6],'
        b'"parameters":{"binary_data_size":48}}]}',
    ],
)
def test_an_answer_that_cannot_be_read_differs(hostile: bytes) -> None:
    assert set(compare(({}, hostile), answer({"y": Y}, binary=True)).values()) == {math.inf}


def test_a_length_that_lies_differs() -> None:
    headers, body = answer({"y": Y}, binary=True)
    for text in ("x", "-1", str(len(body) + 5), "9" * 5000):
        assert compare(({JSON_LENGTH_HEADER.lower(): text}, body), (headers, body))[WHOLE] == (
            math.inf
        )


def by_class(got: Answer, reference: Answer) -> dict[str, float]:
    return errors_between(got, reference, max_bytes=CAP, scores="y")


@pytest.mark.parametrize("binary", [True, False])
def test_of_a_classifier_the_best_class_of_every_row_counts(binary: bool) -> None:
    reference = answer({"y": Y, "z": Y}, binary=binary)
    scaled = answer({"y": 7 * Y, "z": Y}, binary=binary)
    assert by_class(scaled, reference) == {BEST_CLASS: 0.0, "z": 0.0}
    other = Y.copy()
    other[1] = other[1][::-1]
    assert by_class(answer({"y": other, "z": Y}, binary=binary), reference)[
        BEST_CLASS
    ] == pytest.approx(1 / len(Y))


@pytest.mark.parametrize("wrong", [Y[:2], Y[:, :3], np.full_like(Y, np.nan), Y.astype(np.int64)])
def test_scores_that_are_none_are_no_other_class(wrong: np.ndarray) -> None:
    found = by_class(answer({"y": wrong}, binary=True), answer({"y": Y}, binary=True))
    assert found == {"y": math.inf}


def test_of_named_classes_the_first_of_every_row_counts() -> None:
    def named(*labels: str, score: float = 0.9) -> Answer:
        rows = [[{"label": label, "number": 1, "score": score}] for label in labels]
        return document({"model_name": "m", "predictions": rows})

    assert by_class(named("cat", "dog", score=0.5), named("cat", "dog")) == {BEST_CLASS: 0.0}
    assert by_class(named("cat", "cat"), named("cat", "dog")) == {BEST_CLASS: 0.5}
    assert by_class(named("cat"), named("cat", "dog")) == {WHOLE: math.inf}
    assert by_class(document({"error": "no"}), named("cat")) == {WHOLE: math.inf}
