"""A bundle says that requests may run together only if they may."""

from __future__ import annotations

import numpy as np

from edge.manifest import Batching
from edge.spec import Feeds
from host_tools.batching import batching_of
from tests.edge.test_batching import INPUTS, OUTPUTS, PROFILE
from tests.fakes import FakeSession
from tests.models import AFFINE_INPUTS, AFFINE_OUTPUTS, AFFINE_PROFILE, affine

TEXT = (
    INPUTS[0].__class__(name="input_ids", datatype="INT64", shape=("batch", "tokens")),
    INPUTS[0].__class__(name="attention_mask", datatype="INT64", shape=("batch", "tokens")),
)
TEXT_PROFILE = type(PROFILE)(
    ranges={"input_ids": PROFILE.ranges["ids"], "attention_mask": PROFILE.ranges["mask"]}
)


def text(rows: int) -> Feeds:
    ids = np.random.default_rng(0).integers(1, 50, (rows, 16))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def masked(feeds: Feeds) -> dict[str, np.ndarray]:
    hidden = (feeds["input_ids"] * feeds["attention_mask"]).astype(np.float32)
    lengths = feeds["attention_mask"].sum(axis=1, keepdims=True)
    return {
        "hidden": np.stack([hidden, hidden], axis=2),
        "pooled": np.repeat(hidden.sum(axis=1, keepdims=True) / lengths, 2, axis=1),
    }


def careless(feeds: Feeds) -> dict[str, np.ndarray]:
    """Divides by the padded length."""
    values = masked(feeds)
    values["pooled"] = values["hidden"].mean(axis=1)
    return values


def test_rows_that_do_not_see_each_other_may_run_together() -> None:
    feeds = {"x": np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)}
    run = FakeSession().run
    batching, words = batching_of(
        AFFINE_INPUTS, AFFINE_OUTPUTS, AFFINE_PROFILE, feeds=feeds, run=run
    )
    assert batching == Batching()
    assert "may run together" in words


def test_rows_that_see_each_other_may_not() -> None:
    def centred(x: np.ndarray) -> dict[str, np.ndarray]:
        return affine(x - x.mean(axis=0))

    feeds = {"x": np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)}
    run = FakeSession(compute=centred).run
    batching, words = batching_of(
        AFFINE_INPUTS, AFFINE_OUTPUTS, AFFINE_PROFILE, feeds=feeds, run=run
    )
    assert batching is None
    assert "one by one: rows of a batch differ" in words


def test_a_model_that_heeds_its_mask_may_be_padded() -> None:
    batching, words = batching_of(TEXT, OUTPUTS, TEXT_PROFILE, feeds=text(4), run=masked)
    assert batching == Batching(ragged="tokens", pads={"input_ids": 0, "attention_mask": 0})
    assert "padded in 'tokens'" in words


def test_a_model_that_does_not_runs_equal_lengths_together_at_most() -> None:
    batching, _ = batching_of(TEXT, OUTPUTS, TEXT_PROFILE, feeds=text(4), run=careless)
    assert batching == Batching()
