from __future__ import annotations

import dataclasses

import msgspec
import numpy as np
import pytest

from edge.drift.reference import (
    MAX_REFERENCE_BYTES,
    bytes_from_reference,
    reference_from_bytes,
)
from edge.errors import BundleError
from tests.edge.drift.populations import digits, digits_model, reference_of, summary_of


@pytest.fixture(scope="module")
def reference():
    images, logits, _ = digits()
    summary = summary_of(digits_model(), {"image": images[:500]}, {"logits": logits[:500]})
    return reference_of(summary, np.arange(500), classes=10)


def test_a_reference_survives_its_bytes(reference):
    content = bytes_from_reference(reference)
    assert reference_from_bytes(content) == reference
    assert len(content) < 1 << 20


def changed(reference, **changes):
    return dataclasses.replace(reference, **changes)


def spoiled(reference, values):
    first = dataclasses.replace(reference.features[0], values=values)
    return changed(reference, features=(first, *reference.features[1:]))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda r: changed(r, version=2), "version 2"),
        (lambda r: changed(r, rows=7), "rows"),
        (lambda r: changed(r, rows=400), "400 values"),
        (lambda r: changed(r, features=r.features * 2), "the same name"),
        (lambda r: changed(r, features=r.features * 10), "features"),
        (lambda r: spoiled(r, r.features[0].values[::-1]), "not sorted numbers"),
        (lambda r: spoiled(r, np.full(500, np.nan, "<f4").tobytes()), "not sorted numbers"),
        (lambda r: changed(r, classes=(-1, 501)), "classes do not add up"),
        (lambda r: changed(r, classes=(1, 2)), "classes do not add up"),
        (lambda r: changed(r, whole=changed(r.whole, values=7)), "do not fit together"),
        (lambda r: changed(r, whole=changed(r.whole, null=(1.0,))), "not rising"),
        (lambda r: changed(r, whole=changed(r.whole, null=r.whole.null[::-1])), "not rising"),
        (lambda r: changed(r, whole=changed(r.whole, scale=float("nan"))), "malformed"),
        (lambda r: changed(r, whole=changed(r.whole, scale=0.0)), "scale"),
    ],
)
def test_what_no_pack_has_written_is_refused(reference, spoil, words):
    with pytest.raises(BundleError, match=words):
        reference_from_bytes(bytes_from_reference(spoil(reference)))


def test_bytes_that_are_no_reference_are_refused(reference):
    content = bytes_from_reference(reference)
    for hostile in (b"", b"\xff" * 100, content[:-1], content + b"\0", b"\x91" * 100_000):
        with pytest.raises(BundleError, match="malformed"):
            reference_from_bytes(hostile)
    with pytest.raises(BundleError, match="larger than"):
        reference_from_bytes(bytes(MAX_REFERENCE_BYTES + 1))


def test_a_field_that_is_missing_is_named(reference):
    fields = msgspec.msgpack.decode(bytes_from_reference(reference))
    del fields["rows"]
    with pytest.raises(BundleError, match="rows"):
        reference_from_bytes(msgspec.msgpack.encode(fields))
