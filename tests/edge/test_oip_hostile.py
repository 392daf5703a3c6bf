"""Whatever arrives as a request is parsed or refused, and never worse."""

import json
import struct
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from edge import oip
from edge.errors import InputError
from edge.spec import NUMPY_FROM_DATATYPE
from tests.edge.oip_requests import OUTPUTS, accept, binary, tensor

# A request is mutated where a client or an attacker would: in values, in structure, in bytes.
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "shape", "data", "parameters", "binary_data_size", "z"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
tensors = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["x", "", "y"]) | json_values,
        "datatype": st.sampled_from([*NUMPY_FROM_DATATYPE, "FP8"]) | json_values,
        "shape": st.lists(st.integers(-1, 3) | st.integers(), max_size=3) | json_values,
    },
    optional={
        "data": st.lists(st.integers(-1, 300) | st.floats(), max_size=9)
        | st.lists(st.text(max_size=4), max_size=9)
        | json_values,
        "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(-1, 80)})
        | json_values,
    },
)
requests = st.fixed_dictionaries(
    {"inputs": st.lists(tensors, max_size=3) | json_values},
    optional={"outputs": json_values, "id": json_values, "parameters": json_values},
)


def parse_or_refuse(body: bytes, length: int | None) -> None:
    try:
        request = oip.parse_infer(body, length, outputs=OUTPUTS, check=accept)
    except InputError:
        return
    assert sum(array.nbytes for array in request.feeds.values()) <= 8 * len(body)


@settings(max_examples=400, deadline=None)
@given(request=requests, tail=st.binary(max_size=80), with_length=st.booleans())
def test_any_json_is_parsed_or_refused(
    request: dict[str, Any], tail: bytes, with_length: bool
) -> None:
    head = json.dumps(request).encode()
    parse_or_refuse(head + tail, len(head) if with_length else None)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_any_damage_to_a_good_request_is_parsed_or_refused(data: st.DataObject) -> None:
    head = json.dumps({"inputs": [tensor(), binary("INT64", [1], 8, "b")]}).encode()
    body = bytearray(head + struct.pack("<q", 3))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(body)))
    parse_or_refuse(bytes(body[:cut]), data.draw(st.none() | st.integers(1, max(1, cut))))


@settings(max_examples=200, deadline=None)
@given(body=st.binary(max_size=200), length=st.none() | st.integers(1, 200))
def test_any_bytes_are_parsed_or_refused(body: bytes, length: int | None) -> None:
    parse_or_refuse(body, length)
