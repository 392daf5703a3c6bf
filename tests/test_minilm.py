from __future__ import annotations

import pytest

from tests.minilm import Outcome, ask_agent, run_pipeline

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("minilm")
    return ask_agent(folder, run_pipeline(folder))


def test_served_fp32_embeddings_are_those_of_torch(outcome: Outcome) -> None:
    assert outcome.cosines["fp32"].mean() >= 0.9999


def test_the_texts_themselves_get_the_same_embeddings(outcome: Outcome) -> None:
    assert outcome.text_cosines["fp32"].min() >= 0.9999
    assert outcome.text_cosines["int8"].mean() >= 0.99


def test_served_int8_embeddings_keep_their_meaning(outcome: Outcome) -> None:
    assert outcome.cosines["int8"].mean() >= 0.99


def test_most_of_the_arithmetic_is_int8(outcome: Outcome) -> None:
    assert outcome.model.accuracy is not None
    assert outcome.model.accuracy.int8_mac_percent >= 80


def test_the_faster_variant_is_the_preferred_one(outcome: Outcome) -> None:
    fastest = min(outcome.p50_ms, key=lambda precision: outcome.p50_ms[precision])
    assert outcome.model.preferences[0].variant == f"ort-{fastest}"
