import json
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge import oip
from edge.errors import InputError
from edge.spec import NUMPY_FROM_DATATYPE, Datatype, TensorSpec
from tests.edge.oip_requests import OUTPUTS, accept, binary, parse, tensor

NUMBERS = [name for name in NUMPY_FROM_DATATYPE if name != "BYTES"]
JSON_NUMBERS = [name for name in NUMBERS if name != "FP16"]


def parse_binary(tail: bytes, *inputs: dict[str, Any], cut: int = 0) -> oip.InferRequest:
    head = json.dumps({"inputs": list(inputs)}).encode()
    body = head + tail
    return oip.parse_infer(body[: len(body) - cut], len(head), outputs=OUTPUTS, check=accept)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("datatype", JSON_NUMBERS)
def test_json_data_of_every_datatype_flat_or_nested(datatype: Datatype, nested: bool) -> None:
    array = np.array([[0, 1, 1], [1, 0, 1]]).astype(NUMPY_FROM_DATATYPE[datatype])
    sent = array.tolist() if nested else array.ravel().tolist()
    feeds = parse(tensor(datatype=datatype, shape=[2, 3], data=sent)).feeds
    np.testing.assert_array_equal(feeds["x"], array)
    assert feeds["x"].dtype == array.dtype


@pytest.mark.parametrize("datatype", ["INT8", "INT64", "UINT8", "UINT32", "UINT64"])
def test_json_integers_reach_both_ends_of_their_range(datatype: Datatype) -> None:
    limits = np.iinfo(NUMPY_FROM_DATATYPE[datatype])
    sent = [int(limits.min), int(limits.max)]
    assert parse(tensor(datatype=datatype, data=sent)).feeds["x"].ravel().tolist() == sent
    for beyond in (sent[0] - 1, sent[1] + 1, 10**30):
        with pytest.raises(InputError, match="'x'"):
            parse(tensor(datatype=datatype, data=[0, beyond]))


@pytest.mark.parametrize("nested", [False, True])
def test_json_strings_become_their_utf_8(nested: bool) -> None:
    sent = [["", "a,b", 'say "hi"'], ["\\", "grüß\0", '\\",["]']]
    data = sent if nested else [text for row in sent for text in row]
    feed = parse(tensor(datatype="BYTES", shape=[2, 3], data=data)).feeds["x"]
    assert feed.tolist() == [[text.encode() for text in row] for row in sent]


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(st.text(st.characters()), min_size=1, max_size=8), is_ascii=st.booleans())
def test_any_json_strings_are_read_back(texts: list[str], is_ascii: bool) -> None:
    request = {"inputs": [tensor(datatype="BYTES", shape=[len(texts)], data=texts)]}
    body = json.dumps(request, ensure_ascii=is_ascii).encode("utf-8", "surrogatepass")
    try:
        feeds = oip.parse_infer(body, None, outputs=OUTPUTS, check=accept).feeds
    except InputError:
        assert any("\ud800" <= letter <= "\udfff" for text in texts for letter in text)
        return
    # Two halves of a surrogate pair, escaped one by one, are one letter in JSON.
    sent = [text.encode("utf-16", "surrogatepass").decode("utf-16").encode() for text in texts]
    assert feeds["x"].tolist() == sent


@pytest.mark.parametrize(
    ("size", "tail", "problem"),
    [
        (8, b"", "the body ends after 0 bytes"),
        (7, bytes(7), "at least 8 bytes"),
        (-1, b"", "binary_data_size is -1"),
        (9, bytes(9), "take 8 bytes, the tensor has 9"),
        (9, struct.pack("<I5s", 6, b"abcde"), "element 0 of 2 ends behind the tensor's 9 bytes"),
        (9, struct.pack("<I5s", 5, b"abcde"), "element 1 of 2 ends behind"),
        (8, struct.pack("<II", 0, 2**32 - 1), "element 1 of 2 ends behind"),
    ],
)
def test_binary_strings_of_a_wrong_length_are_refused(size: int, tail: bytes, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        parse_binary(tail, binary("BYTES", [2], size))


def test_a_hostile_shape_of_strings_costs_nothing() -> None:
    for shape in ([2**40], [2**31, 2**31]):
        head = json.dumps({"inputs": [binary("BYTES", shape, 16)]}).encode()
        assert peak_bytes_of_refusal(head + bytes(16), accept, len(head)) < 100_000
    # Empty lists are as short as numbers, and larger in memory.
    for data in ("[" + "[]," * 300_000 + "[]]", '["' + "a," * 300_000 + '"]'):
        body = b'{"inputs":[{"name":"x","datatype":"BYTES","shape":[3,1],"data":%s}]}'
        assert peak_bytes_of_refusal(body % data.encode(), accept) < 8 * len(data)


def test_a_number_too_large_for_fp32_is_refused_not_turned_into_infinity() -> None:
    with pytest.raises(InputError, match="range of FP32"):
        parse(tensor(data=[1, 1e39]))


@pytest.mark.parametrize("datatype", NUMBERS)
def test_binary_data_is_read_in_place(datatype: Datatype) -> None:
    array = np.array([[0, 1], [1, 0]]).astype(NUMPY_FROM_DATATYPE[datatype])
    raw = array.tobytes()
    head = json.dumps({"inputs": [binary(datatype, [2, 2], len(raw))]}).encode()
    body = head + raw
    feeds = oip.parse_infer(body, len(head), outputs=OUTPUTS, check=accept).feeds
    np.testing.assert_array_equal(feeds["x"], array)
    assert np.shares_memory(feeds["x"], np.frombuffer(body, np.uint8))


def test_binary_layout_is_little_endian_row_major_in_the_order_of_inputs() -> None:
    tail = struct.pack("<4f", 1, 2, 3, 4) + struct.pack("<2q", -5, 6)
    request = parse_binary(
        tail, binary("FP32", [2, 2], 16, "a"), tensor(name="j"), binary("INT64", [2], 16, "b")
    )
    assert request.feeds["a"].tolist() == [[1, 2], [3, 4]]
    assert request.feeds["j"].tolist() == [[1, 2]]
    assert request.feeds["b"].tolist() == [-5, 6]


@pytest.mark.parametrize(
    ("inputs", "problem"),
    [
        ([tensor(data=[1])], "needs 2 values, data has 1"),
        ([tensor(data=[1, 2, 3])], "needs 2 values, data has 3"),
        ([tensor(shape=[2, 1], data=[[1, 2]])], r"in the shape \[1, 2\]"),
        ([tensor(data=[[[1, 2]]])], "nested 3 deep"),
        ([tensor(shape=[2, 2], data=[[1, 2], [3]])], "needs 4 values, data has 3"),
        ([tensor(shape=[2, 2], data=[[1, 2, 3], [4]])], "differ in length"),
        ([tensor(data=["1", "2"])], "Expected `float`, got `str`"),
        ([tensor(data=[1, None])], "Expected `float`"),
        ([tensor(data=[1, [2]])], "Expected `float`"),
        ([tensor(data=5)], "must be a list"),
        ([tensor(data=None)], "must be a list"),
        ([tensor(datatype="BOOL", data=[0, 1])], "Expected `bool`"),
        ([tensor(datatype="INT32", data=[1.5, 2])], "Expected `int`"),
        ([tensor(datatype="BYTES", data=["a"])], "needs 2 values, data has 1"),
        ([tensor(datatype="BYTES", data=["a", 1])], "Expected `str`"),
        ([tensor(datatype="BYTES", data=["a", None])], "Expected `str`"),
        ([tensor(datatype="BYTES", data=["a,b"])], "needs 2 values, data has 1"),
        ([tensor(datatype="BYTES", data=['a\\","'])], "needs 2 values, data has 1"),
        ([tensor(datatype="BYTES", shape=[2, 1], data=[["a", "b"]])], r"in the shape \[1, 2\]"),
        ([tensor(datatype="BYTES", shape=[2, 2], data=[["a"], ["b", "c", "d"]])], "data has 2"),
        ([tensor(datatype="FP8", data=[1, 2])], "'FP8' is not supported"),
        ([tensor(datatype="FP16")], "binary tensor"),
        ([tensor(shape=[-1, 2])], ">= 1"),
        ([tensor(shape=[0, 2], data=[])], ">= 1"),
        ([tensor(shape=[2**63, 2**63])], "needs"),
        ([tensor(shape=[1] * 33)], "length <= 32"),
        ([tensor(shape="1,2")], "shape"),
        ([tensor(), tensor()], "given twice"),
        ([{"name": "x", "datatype": "FP32", "shape": [1, 2]}], "neither data"),
        ([binary("FP32", [1, 2], 8)], "Inference-Header-Content-Length"),
        ([tensor(parameters={"shared_memory_region": "r"})], "shared memory"),
        ([{"datatype": "FP32"}], "name"),
    ],
)
def test_an_inconsistent_input_is_refused_with_its_reason(
    inputs: list[dict[str, Any]], problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        parse(*inputs)


@pytest.mark.parametrize(
    ("tail", "inputs", "problem"),
    [
        (b"\0" * 8, [binary("FP32", [1, 3], 8)], "is 12 bytes, not 8"),
        (b"\0" * 8, [binary("FP32", [1, 2], -8)], "binary_data_size is -8"),
        (b"\0" * 4, [binary("FP32", [1, 2], 8)], "ends after 4 bytes"),
        (b"\0" * 9, [binary("FP32", [1, 2], 8)], "account for 8"),
        (b"\0" * 8, [tensor()], "account for 0"),
        (b"\0" * 8, [{**binary("FP32", [1, 2], 8), "data": [1, 2]}], "both data"),
        (b"\x02", [binary("BOOL", [1], 1)], "0 or 1"),
        (b"", [binary("FP32", [2**62, 2**62], 2**40)], "ends after 0 bytes"),
    ],
)
def test_a_binary_tensor_that_does_not_match_its_body_is_refused(
    tail: bytes, inputs: list[dict[str, Any]], problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        parse_binary(tail, *inputs)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "truncated"),
        (b"[]", "Expected `object`"),
        (b"{}", "inputs"),
        (b'{"inputs": 3}', "Expected `array`"),
        (b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [NaN]}]}', "NaN"),
        (b'{"inputs": [], "parameters": {"x": -Infinity}}', "NaN"),
        (b'{"inputs":' + b"[" * 100_000, "Expected `object`"),
        (b'{"mine":' + b"[" * 100_000, "nested too deeply"),
        (b'{"inputs": [{"data":' + b'{"a":' * 100_000, "nested too deeply"),
        (b'{"id": "\xff"}', "valid inference request"),
        (b'{"id": 5, "inputs": []}', "Expected `str"),
    ],
)
def test_a_body_that_is_no_request_is_refused_with_its_reason(body: bytes, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        oip.parse_infer(body, None, outputs=OUTPUTS, check=accept)


def test_data_nested_to_its_depth_limit_is_refused_without_a_crash() -> None:
    body = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":%s}]}'
    for depth in (2, 100, 1000, 50_000):
        with pytest.raises(InputError):
            oip.parse_infer(
                body % (b"[" * depth + b"]" * depth), None, outputs=OUTPUTS, check=accept
            )


def test_unknown_fields_and_parameters_are_ignored() -> None:
    request = parse(tensor(parameters={"mine": 1}), extra=True, parameters={"priority": 3})
    assert request.feeds["x"].tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, {"y": False, "k": False}),
        ({"parameters": {"binary_data_output": True}}, {"y": True, "k": True}),
        ({"outputs": [{"name": "k"}]}, {"k": False}),
        ({"outputs": [{"name": "k", "parameters": {"binary_data": True}}]}, {"k": True}),
        (
            {
                "outputs": [{"name": "k", "parameters": {"binary_data": False}}, {"name": "y"}],
                "parameters": {"binary_data_output": True},
            },
            {"k": False, "y": True},
        ),
    ],
)
def test_the_setting_of_an_output_overrides_that_of_the_request(
    fields: dict[str, Any], wanted: dict[str, bool]
) -> None:
    got = parse(tensor(), **fields).wanted
    assert {output.name: output.binary for output in got} == wanted
    assert [output.name for output in got] == list(wanted)


@pytest.mark.parametrize(
    ("outputs", "problem"),
    [
        ([{"name": "z"}], "gives 'y', 'k'"),
        ([{"name": "y"}, {"name": "y"}], "asked for twice"),
        ([{"name": "y", "parameters": {"classification": 3}}], "classification"),
        ([{"name": "y", "parameters": {"shared_memory_region": "r"}}], "shared memory"),
    ],
)
def test_an_output_that_cannot_be_given_is_refused(
    outputs: list[dict[str, Any]], problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        parse(tensor(), outputs=outputs)


def peak_bytes_of_refusal(
    body: bytes, check: oip.CheckTensor, json_length: int | None = None
) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            oip.parse_infer(body, json_length, outputs=OUTPUTS, check=check)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_refusing_a_long_list_of_numbers_costs_no_more_than_its_text() -> None:
    count = 1_000_000
    data = "1.5," * (count - 1) + "1.5"
    template = '{"inputs": [{"name": "x", "datatype": "FP32", "shape": [%d], "data": [%s]}]}'

    def refuse(name: str, datatype: str, shape: tuple[int, ...]) -> None:
        raise InputError("the model takes less")

    for shape, check in ((count + 1, accept), (count, refuse)):
        body = (template % (shape, data)).encode()
        assert peak_bytes_of_refusal(body, check) < 3 * len(body)  # decoded: 8 times


@pytest.mark.parametrize("value", ["", "-1", "1.5", "0x10", " 5", "٣", "9" * 5000, "5, 5"])
def test_a_malformed_json_length_is_refused(value: str) -> None:
    with pytest.raises(InputError, match="decimal number"):
        oip.json_length_from_header(value, body_bytes=100)


def test_json_length_must_lie_inside_the_body() -> None:
    assert oip.json_length_from_header(None, body_bytes=100) is None
    assert oip.json_length_from_header("100", body_bytes=100) == 100
    with pytest.raises(InputError, match="only 100 bytes"):
        oip.json_length_from_header("101", body_bytes=100)
    assert oip.json_length_from_header("0", body_bytes=100) == 0


def spec(*shape: int | str, datatype: Datatype = "FP32") -> tuple[TensorSpec, ...]:
    return (TensorSpec(name="x", datatype=datatype, shape=shape),)


def raw(body: bytes, inputs: tuple[TensorSpec, ...]) -> np.ndarray:
    parsed = oip.parse_raw(body, inputs=inputs, outputs=OUTPUTS)
    assert [(w.name, w.binary) for w in parsed.wanted] == [(o.name, True) for o in OUTPUTS]
    return parsed.feeds["x"]


def test_a_body_of_nothing_but_a_tensor_is_one_row_whose_length_may_vary() -> None:
    values = np.arange(6, dtype=np.float32)
    np.testing.assert_array_equal(
        raw(values.tobytes(), spec("batch", 2, 3)), values.reshape(1, 2, 3)
    )
    np.testing.assert_array_equal(raw(values.tobytes(), spec("batch", "n")), values.reshape(1, 6))
    np.testing.assert_array_equal(
        raw(values.tobytes(), spec("batch", "n", 3)), values.reshape(1, 2, 3)
    )


@pytest.mark.parametrize(
    ("body", "inputs"),
    [
        (b"", spec("batch", "n")),
        (bytes(7), spec("batch", "n")),
        (bytes(16), spec("batch", 3)),
        (bytes(24), spec("batch", 3)),
        (bytes(24), spec("batch", "h", "w")),
        (bytes(4), ()),
        (bytes(4), (*spec("batch", 1), *spec("batch", 1))),
        (b"\x02", spec("batch", 1, datatype="BOOL")),
        (b"text", spec("batch", 2, datatype="BYTES")),
        (b"text", spec("batch", "n", datatype="BYTES")),
    ],
)
def test_a_body_that_is_no_row_of_the_only_input_is_refused(
    body: bytes, inputs: tuple[TensorSpec, ...]
) -> None:
    with pytest.raises(InputError, match=r"no row of input|one input|BOOL byte|one string"):
        oip.parse_raw(body, inputs=inputs, outputs=OUTPUTS)


@pytest.mark.parametrize("shape", [("batch", 1), ("batch",), (1,)])
@pytest.mark.parametrize("body", [b"", b"any \xff bytes"])
def test_a_body_of_nothing_but_a_string_is_the_string_itself(
    shape: tuple[int | str, ...], body: bytes
) -> None:
    fed = raw(body, spec(*shape, datatype="BYTES"))
    assert (fed.shape, fed.ravel().tolist()) == ((1,) * len(shape), [body])


def test_the_time_limit_and_the_priority_of_a_request_are_read() -> None:
    parsed = parse(tensor(), parameters={"timeout": 1500, "priority": 2})
    assert (parsed.timeout_s, parsed.priority) == (0.0015, 2)
    assert (parse(tensor()).timeout_s, parse(tensor()).priority) == (None, oip.NORMAL_PRIORITY)
    for bad in ({"timeout": -1}, {"priority": 10}, {"priority": "high"}):
        with pytest.raises(InputError):
            parse(tensor(), parameters=bad)
