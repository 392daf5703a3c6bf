"""Joined requests are answered like requests of their own, whatever is joined with what."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.batching import MAX_PADDED_COST, Extent, Plan
from edge.errors import BundleError
from edge.manifest import Batching, bytes_from_manifest
from edge.manifest_reading import manifest_from_bytes
from edge.spec import Feeds, Profile, ShapeRange, TensorSpec, check_feeds
from edge.tensor_bytes import object_array
from tests.bundles import affine_parts
from tests.fakes import affine_plan

MAX_TOKENS, MAX_ROWS = 32, 8
INPUTS = (
    TensorSpec(name="ids", datatype="INT64", shape=("batch", "tokens")),
    TensorSpec(name="mask", datatype="INT64", shape=("batch", "tokens")),
    TensorSpec(name="bias", datatype="FP32", shape=("batch", 2)),
)
OUTPUTS = (
    TensorSpec(name="hidden", datatype="FP32", shape=("batch", "tokens", 2)),
    TensorSpec(name="pooled", datatype="FP32", shape=("batch", 2)),
)
PROFILE = Profile(
    ranges={
        "ids": ShapeRange(min=(1, 1), opt=(1, 8), max=(MAX_ROWS, MAX_TOKENS)),
        "mask": ShapeRange(min=(1, 1), opt=(1, 8), max=(MAX_ROWS, MAX_TOKENS)),
        "bias": ShapeRange(min=(1, 2), opt=(1, 2), max=(MAX_ROWS, 2)),
    }
)
RAGGED = Batching(ragged="tokens", pads={"ids": 7, "mask": 0}, multiple=4)


def test_strings_are_joined_and_parted_but_never_padded() -> None:
    specs = (TensorSpec(name="text", datatype="BYTES", shape=("batch", "n")),)
    bounds = ShapeRange(min=(1, 1), opt=(1, 1), max=(8, 4))
    profile = Profile(ranges={"text": bounds})
    words = Plan(Batching(), inputs=specs, outputs=specs, profile=profile)
    parts = [object_array([b"a", b"b\0"], (1, 2)), object_array([b"", b"long"] * 2, (2, 2))]
    extents = [words.extent({"text": part}) for part in parts]
    assert words.joined(*extents) is not None
    joined = words.join([{"text": part} for part in parts])
    assert joined["text"].tolist() == [[b"a", b"b\0"], [b"", b"long"], [b"", b"long"]]
    for part, back in zip(parts, words.split(joined, extents), strict=True):
        assert back["text"].tolist() == part.tolist()
    longer = words.extent({"text": object_array([b"a"] * 3, (1, 3))})
    assert words.joined(extents[0], longer) is None


def test_a_manifest_that_would_pad_strings_is_refused() -> None:
    manifest, _ = affine_parts()
    text = (TensorSpec(name="x", datatype="BYTES", shape=("batch", "n")),)
    bounds = ShapeRange(min=(1, 1), opt=(1, 1), max=(8, 4))
    model = replace(
        manifest.models[0],
        inputs=text,
        profile=Profile(ranges={"x": bounds}),
        batching=Batching(ragged="n", pads={"x": 0}),
    )
    with pytest.raises(BundleError, match="strings cannot be padded"):
        manifest_from_bytes(bytes_from_manifest(replace(manifest, models=(model,))))


def plan(batching: Batching | None = RAGGED, max_rows: int | None = None) -> Plan:
    return Plan(batching, inputs=INPUTS, outputs=OUTPUTS, profile=PROFILE, max_rows=max_rows)


def encoder(feeds: Feeds) -> dict[str, np.ndarray]:
    """A model that ignores what the mask leaves out."""
    check_feeds(feeds, INPUTS, PROFILE)
    hidden = (feeds["ids"] * feeds["mask"])[:, :, None] + feeds["bias"][:, None, :]
    weights = feeds["mask"][:, :, None].astype(np.float32)
    pooled = (hidden * weights).sum(axis=1) / weights.sum(axis=1)
    return {"hidden": hidden.astype(np.float32), "pooled": pooled.astype(np.float32)}


def request(rows: int, tokens: int, seed: int) -> Feeds:
    rng = np.random.default_rng(seed)
    return {
        "ids": rng.integers(1, 100, (rows, tokens)),
        "mask": np.ones((rows, tokens), np.int64),
        "bias": rng.normal(size=(rows, 2)).astype(np.float32),
    }


sizes = st.lists(
    st.tuples(st.integers(1, MAX_ROWS), st.integers(1, MAX_TOKENS)), min_size=1, max_size=12
)


@given(sizes)
def test_every_request_gets_the_answer_it_would_get_alone(sizes: list[tuple[int, int]]) -> None:
    rules = plan()
    requests = [request(rows, tokens, seed) for seed, (rows, tokens) in enumerate(sizes)]
    extents = [rules.extent(feeds) for feeds in requests]
    batch, taken = [0], extents[0]
    for number in range(1, len(requests)):
        together = rules.joined(taken, extents[number])
        if together is not None:
            batch, taken = [*batch, number], together
    assert taken.rows == sum(sizes[number][0] for number in batch) <= MAX_ROWS
    joined = rules.join([requests[number] for number in batch])
    length = joined["ids"].shape[1]
    assert length <= MAX_TOKENS
    if len(batch) > 1:
        assert length % RAGGED.multiple == 0 or length == MAX_TOKENS
        longest = max(sizes[number][1] for number in batch)
        assert taken.rows * longest <= MAX_PADDED_COST * taken.area
    answers = rules.split(encoder(joined), [extents[number] for number in batch])
    for number, answer in zip(batch, answers, strict=True):
        for name, expected in encoder(requests[number]).items():
            np.testing.assert_allclose(answer[name], expected, rtol=1e-5)


def test_without_a_ragged_dimension_only_equal_shapes_are_joined() -> None:
    rules = plan(Batching())
    five, again, six = (rules.extent(request(2, tokens, 0)) for tokens in (5, 5, 6))
    together = rules.joined(five, again)
    assert together is not None
    assert together.rows == 4
    assert rules.joined(five, six) is None


def test_requests_are_never_joined_where_the_bundle_does_not_say_that_they_may_be() -> None:
    rules = plan(None)
    one = rules.extent(request(1, 5, 0))
    assert (rules.max_rows, one.key, rules.joined(one, one)) == (1, None, None)
    assert rules.extent(request(3, 5, 0)).rows == 3  # which its statistics count


def test_the_rows_of_a_batch_are_bounded_by_profile_and_configuration() -> None:
    assert plan().max_rows == MAX_ROWS
    assert plan(max_rows=3).max_rows == 3
    assert plan(max_rows=99).max_rows == MAX_ROWS
    two = Extent(key="k", rows=2, length=5, area=10)
    assert plan(max_rows=3).joined(two, two) is None


def test_much_padding_is_refused() -> None:
    long, short = (plan().extent(request(1, tokens, 0)) for tokens in (32, 2))
    assert plan().joined(long, short) is None


@pytest.mark.parametrize(
    ("batching", "words"),
    [
        (Batching(ragged="tokens", pads={"x": 0}), "pads"),
        (Batching(pads={"x": 0}), "pads"),
        (Batching(ragged="batch", pads={"x": 0}), "ragged"),
    ],
)
def test_a_manifest_whose_batching_does_not_fit_its_tensors_is_refused(
    batching: Batching, words: str
) -> None:
    manifest = affine_parts()[0]
    model = replace(manifest.models[0], batching=batching)
    with pytest.raises(BundleError, match=words):
        manifest_from_bytes(bytes_from_manifest(replace(manifest, models=(model,))))


def test_a_fixed_batch_cannot_be_joined() -> None:
    manifest = affine_parts()[0]
    fixed = tuple(replace(spec, shape=(1, *spec.shape[1:])) for spec in manifest.models[0].inputs)
    model = replace(manifest.models[0], inputs=fixed, batching=Batching())
    with pytest.raises(BundleError, match="first dimension that varies"):
        manifest_from_bytes(bytes_from_manifest(replace(manifest, models=(model,))))
    assert affine_plan(batching=Batching()).max_rows == 8
