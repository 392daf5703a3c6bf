"""POST /predict of texts and of photos with boxes, over HTTP."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from edge.agent import Agent
from edge.classes import Classes
from edge.text import MAX_CHARACTERS
from tests.agents import make_config, running_agent
from tests.detectors import SIDE, detector_parts, photo
from tests.encoders import (
    MAX_ROWS,
    MAX_TOKENS,
    TABLE,
    WIDTH,
    encoder_parts,
    ids_of,
    vector_of,
)

LABELS = ("cat", "dog")


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """An agent with an encoder, a classifier of texts and a detector."""
    (encoder, files), (detector, others) = encoder_parts(), detector_parts(LABELS)
    classes = Classes(output="embedding", labels=tuple("abcdef"), softmax=False, top=2)
    classifier = replace(encoder.models[0], name="classifier", classes=classes)
    models = (*encoder.models, classifier, *detector.models)
    config = make_config(
        tmp_path_factory.mktemp("predict"), (replace(encoder, models=models), {**files, **others})
    )
    with running_agent(config) as agent:
        yield agent


def predict(agent: Agent, model: str, **request: Any) -> httpx.Response:
    return httpx.post(f"{agent.url}/predict/{model}", **request)


def test_texts_become_tensors_in_one_batch(agent: Agent) -> None:
    answer = predict(agent, "encoder", json={"text": ["the cat", "dog"]}).json()
    assert (answer["model_name"], answer["model_version"]) == ("encoder", "1")
    embedding, hidden = answer["outputs"]
    assert (embedding["name"], embedding["shape"]) == ("embedding", [2, WIDTH])
    expected = [vector_of(ids_of("the", "cat")), vector_of(ids_of("dog"))]
    np.testing.assert_allclose(embedding["data"], np.concatenate(expected), atol=1e-6)
    padded = [ids_of("the", "cat"), [*ids_of("dog"), 0]]
    np.testing.assert_array_equal(hidden["data"], TABLE[np.array(padded)].ravel())


def test_curl_needs_no_content_type(agent: Agent) -> None:
    words = ["curl", "-s", "-d", '{"text": "dog"}', f"{agent.url}/predict/encoder"]
    answer = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
    np.testing.assert_allclose(answer["outputs"][0]["data"], vector_of(ids_of("dog")), atol=1e-6)


def test_a_classifier_of_texts_answers_with_names(agent: Agent) -> None:
    answer = predict(agent, "classifier", json={"text": ["cat", "dog ran far"]}).json()
    for found, ids in zip(
        answer["predictions"], (ids_of("cat"), ids_of("dog", "ran", "far")), strict=True
    ):
        best = np.argsort(-vector_of(ids))[:2]
        assert [guess["label"] for guess in found] == ["abcdef"[n] for n in best]
        scores = [guess["score"] for guess in found]
        np.testing.assert_allclose(scores, vector_of(ids)[best], atol=1e-6)


def test_a_long_text_is_cut_as_declared(agent: Agent) -> None:
    answer = predict(agent, "encoder", json={"text": "dog " * 1000}).json()
    assert answer["outputs"][1]["shape"] == [1, MAX_TOKENS, WIDTH]


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"json": {"text": []}}, f"0 texts, model 'encoder' takes 1..{MAX_ROWS}"),
        ({"json": {"text": ["a"] * (MAX_ROWS + 1)}}, f"{MAX_ROWS + 1} texts"),
        ({"json": {"text": "a" * (MAX_CHARACTERS + 1)}}, "fewer or shorter"),
        ({"json": {"texts": "a"}}, "missing required field `text`"),
        ({"json": {"text": 5}}, "$.text"),
        ({"json": ["a"]}, "the body is not"),
        ({"content": b""}, "the body is not"),
        ({"content": b'{"text": "\xff"}'}, "the body is not"),
        ({"content": b"[" * 100_000}, "the body is not"),
        ({"files": {"image": b"x"}}, "the body is not"),
    ],
)
def test_what_is_no_text_is_told(agent: Agent, request_: dict[str, Any], said: str) -> None:
    answer = predict(agent, "encoder", **request_)
    assert (answer.status_code, said in answer.json()["error"]) == (400, True), answer.text


def fraction(value: float) -> float:
    """What is left of a fraction that was written as a byte."""
    return round(value * 255) / 255


def test_a_detector_answers_with_boxes_in_pixels_of_each_photo(agent: Agent) -> None:
    overlapping = [[0.2, 0.4, 0.6, 0.6, 0.5, 0.7], [0.2, 0.4, 0.6, 0.62, 0.1, 0.9]]
    square = photo(overlapping, (SIDE, SIDE))
    wide = photo([[0.25, 0.25, 0.75, 0.75, 0.9, 0.3]], (SIDE, SIDE // 2))
    files = [("image", ("a.png", content, "image/png")) for content in (square, wide)]
    answer = predict(agent, "detector", files=files).json()
    assert (answer["model_name"], answer["model_version"]) == ("detector", "1")
    first, second = answer["detections"]
    (found,) = first  # the other overlaps it: 0.4 * 0.2 of 0.4 * 0.22
    assert (found["label"], found["number"]) == ("dog", 1)
    assert found["score"] == pytest.approx(fraction(0.9))
    box = [fraction(side) * SIDE for side in (0.2, 0.4, 0.6, 0.62)]
    np.testing.assert_allclose(found["box"], box, atol=1e-5)
    (found,) = second
    assert (found["label"], found["score"]) == ("cat", pytest.approx(fraction(0.9)))
    # The wide photo lies SIDE / 4 below the upper edge of what the model sees.
    left, top, right, bottom = (fraction(side) * SIDE for side in (0.25, 0.25, 0.75, 0.75))
    shift = SIDE // 4
    np.testing.assert_allclose(
        found["box"], [left, max(0, top - shift), right, min(SIDE // 2, bottom - shift)], atol=1e-5
    )


def test_a_photo_without_boxes_has_an_empty_list(agent: Agent) -> None:
    answer = predict(agent, "detector", content=photo([], (SIDE, SIDE))).json()
    assert answer["detections"] == [[]]


def test_text_for_a_model_of_images_is_told_so(agent: Agent) -> None:
    answer = predict(agent, "detector", json={"text": "cat"})
    assert (answer.status_code, "takes images" in answer.json()["error"]) == (400, True)


def test_a_model_of_tensors_says_where_to_send_them(tmp_path: Path) -> None:
    with running_agent(make_config(tmp_path)) as agent:
        answer = predict(agent, "affine", json={"text": "cat"})
        assert answer.status_code == 400
        assert "/v2/models/affine/infer" in answer.json()["error"]
