"""What a chat graph says of itself, read from a file that may be altered."""

from dataclasses import replace

import msgspec
import pytest

from edge.chat.spec import (
    DecoderSpec,
    cache_inputs,
    cache_outputs,
    decoder_from_metadata,
)
from edge.errors import ModelError

SPEC = DecoderSpec(
    form="scatter",
    layers=2,
    kv_heads=3,
    head_dim=8,
    vocabulary=100,
    context=64,
    cache="FP16",
    eos=(2, 7),
)


def test_metadata_give_the_spec_that_was_written():
    assert decoder_from_metadata(msgspec.json.encode(SPEC).decode()) == SPEC


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layers", 0),
        ("layers", 10**6),
        ("head_dim", -1),
        ("vocabulary", 2**60),
        ("context", 0),
        ("window", 0),
        ("eos", (100,)),
        ("eos", (-1,)),
    ],
)
def test_numbers_that_no_graph_has_are_refused_by_name(field, value):
    altered = msgspec.json.encode(replace(SPEC, **{field: value})).decode()
    with pytest.raises(ModelError, match=f"edge_kit.decoder: {field}"):
        decoder_from_metadata(altered)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"form": "paged"}'])
def test_metadata_that_are_no_spec_are_refused(text):
    with pytest.raises(ModelError, match="malformed"):
        decoder_from_metadata(text)


def test_a_position_takes_a_key_and_a_value_in_every_layer():
    assert SPEC.position_bytes == 2 * 2 * 3 * 8 * 2
    assert replace(SPEC, cache="FP32").position_bytes == 2 * SPEC.position_bytes


@pytest.mark.parametrize(("form", "suffix"), [("scatter", "out"), ("prefix", "new")])
def test_outputs_are_named_after_their_inputs(form, suffix):
    spec = replace(SPEC, form=form)
    assert cache_inputs(spec) == ("key_0", "value_0", "key_1", "value_1")
    assert cache_outputs(spec) == tuple(f"{name}_{suffix}" for name in cache_inputs(spec))
