"""Bytes that somebody wrote to be taken for a Manifest: always a BundleError, nothing else."""

import copy
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.manifest import MAX_MANIFEST_BYTES, bytes_from_manifest
from edge.manifest_reading import manifest_from_bytes
from tests.edge.manifests import CONTENT, is_refused, refused, spelled

Place = tuple[Any, Any]
MAPS = {"tolerance", "tools", "ranges"}  # objects whose keys are names, not fields


def places(node: Any, *, fields_only: bool = False, inside: str = "") -> Iterator[Place]:
    """Yield (container, key) of everything in a document, the outermost first."""
    keys = node.keys() if isinstance(node, dict) else range(len(node))
    for key in list(keys):
        if not (fields_only and (isinstance(node, list) or inside in MAPS)):
            yield node, key
        if isinstance(node[key], dict | list):
            yield from places(node[key], fields_only=fields_only, inside=str(key))


def each_alteration(change: Callable[[Any, Any], object], **options: bool) -> Iterator[bytes]:
    """Yield the Manifest once per place in it, with that place changed."""
    total = len(list(places(json.loads(CONTENT), **options)))
    assert total > 50
    for number in range(total):
        document = json.loads(CONTENT)
        change(*list(places(document, **options))[number])
        yield spelled(document)


def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError("duplicate key")
    return dict(pairs)


def is_canonical_json(content: bytes) -> bool:
    """Whether content is strict JSON in the one spelling that `json` gives it."""
    try:
        return spelled(json.loads(content, object_pairs_hook=no_duplicates)) == content
    except ValueError:
        return False


def test_no_other_spelling_of_any_byte_is_accepted() -> None:
    accepted = 0
    for position in range(len(CONTENT) + 1):
        head, tail = CONTENT[:position], CONTENT[position:]
        changes = [head + extra + tail for extra in (b" ", b"\n", b"0", b'"', b",", b"\xff")]
        changes += [head + tail[1:], head + bytes([tail[0] ^ 0x20]) + tail[1:]] if tail else []
        for content in changes:
            if not is_refused(content):
                accepted += 1
                assert is_canonical_json(content), content[max(0, position - 40) :][:80]
    assert accepted > 100  # inside names and numbers a change is another Manifest, not a spelling


def test_a_cut_at_any_length_is_refused() -> None:
    for length in range(len(CONTENT)):
        assert is_refused(CONTENT[:length]), length


@pytest.mark.parametrize("tail", [b" ", b"\n", b"\0", b"{}", b"null", b"\xff", CONTENT])
def test_trailing_bytes_are_refused(tail: bytes) -> None:
    refused(CONTENT + tail)


@pytest.mark.parametrize(
    "respell",
    [
        lambda document: json.dumps(document, sort_keys=True),
        lambda document: json.dumps(document, indent=2, sort_keys=True) + "\n",
        lambda document: json.dumps(dict(reversed(document.items())), indent=1) + "\n",
        lambda document: "\ufeff" + json.dumps(document, indent=1, sort_keys=True) + "\n",
        lambda document: json.dumps(document, indent=1, sort_keys=True).replace("\n", "\r\n"),
        lambda document: spelled(document).decode().replace("affine", "\\u0061ffine"),
        lambda document: spelled(document).decode().replace("0.1\n", "0.10\n"),
        lambda document: spelled(document).decode().replace("0.1\n", "1e-1\n"),
    ],
)
def test_the_same_content_in_another_spelling_is_refused(respell: Callable[[Any], str]) -> None:
    content = respell(json.loads(CONTENT)).encode()
    assert content != CONTENT
    refused(content)


def test_a_key_given_twice_is_refused_everywhere() -> None:
    lines = CONTENT.decode().splitlines(keepends=True)
    keyed = [i for i, line in enumerate(lines) if re.fullmatch(r' +".*": [^\[{]+,?\n', line)]
    assert len(keyed) > 30
    for number in keyed:
        twice = lines[number].rstrip(",\n") + ",\n"
        content = "".join([*lines[:number], twice, *lines[number:]])
        assert json.loads(content) == json.loads(CONTENT)  # lenient readers do not notice
        refused(content.encode())


def test_an_unknown_field_is_refused_everywhere() -> None:
    def add(container: Any, key: Any) -> None:
        container["zzz"] = copy.deepcopy(container[key])

    for content in each_alteration(add, fields_only=True):
        assert is_refused(content)


def test_a_missing_field_is_refused_everywhere() -> None:
    def remove(container: Any, key: Any) -> None:
        del container[key]

    for content in each_alteration(remove, fields_only=True):
        assert is_refused(content)


HOSTILE = [None, True, 1.5, -1, 10**30, "", "/", "\0", [], {}, [[]], {"": 0}, [None], "x" * 10**4]


@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_no_value_anywhere_raises_anything_but_a_bundle_error(value: object) -> None:
    for content in each_alteration(lambda container, key: container.__setitem__(key, value)):
        is_refused(content)


@pytest.mark.parametrize(
    "number", [-1, 2**63, 2**64, 10**30, 10**400, 1.0, 1.5, True, None], ids=lambda n: str(n)[:9]
)
def test_an_integer_that_is_no_count_is_refused_everywhere(number: object) -> None:
    document = json.loads(CONTENT)
    integers = [i for i, (c, k) in enumerate(places(document)) if type(c[k]) is int]
    assert len(integers) > 20
    for place in integers:
        document = json.loads(CONTENT)
        container, key = list(places(document))[place]
        container[key] = number
        assert is_refused(spelled(document)), (container, key)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "0x1", "1.", "null"])
def test_a_float_that_is_no_number_is_refused_everywhere(number: str) -> None:
    floats = list(re.finditer(rb": (\d+\.\d+)", CONTENT))
    assert len(floats) > 10
    for match in floats:
        start, end = match.span(1)
        content = CONTENT[:start] + number.encode() + CONTENT[end:]
        optional = number == "null" and b"_percent" in CONTENT[:start].splitlines()[-1]
        assert optional or is_refused(content), content[start - 30 : end]


@pytest.mark.parametrize("depth", [100, 2000, 100_000, 700_000])
@pytest.mark.parametrize(
    "shape",
    [
        lambda n: b"[" * n,
        lambda n: b"[" * n + b"]" * n,
        lambda n: b'{"a":' * n + b"1" + b"}" * n,
        lambda n: b'{"schema":' + b"[" * n + b"]" * n + b"}",
        lambda n: b'{"schema":3,"unknown":' + b"[" * n + b"]" * n + b"}",
        lambda n: b'{"schema":3,"models":' + b"[" * n + b"]" * n + b"}",
    ],
)
def test_deep_nesting_is_refused(shape: Callable[[int], bytes], depth: int) -> None:
    refused(shape(depth))


@pytest.mark.parametrize(
    "bad",
    [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\xaf", b"\\ud800", b"\\udc00", b"\\ud800\\u0041"],
)
def test_text_that_is_not_unicode_is_refused(bad: bytes) -> None:
    for text in (b"2026.1", b"affine-bundle", b"tests", b'"torch'):
        assert CONTENT.count(text) > 0
        refused(CONTENT.replace(text, text + bad, 1))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)


@given(st.binary(max_size=100) | json_values.map(lambda v: json.dumps(v).encode()))
def test_bytes_that_are_no_manifest_are_refused(content: bytes) -> None:
    assert is_refused(content)


@settings(max_examples=200)
@given(st.data())
def test_any_value_at_any_place_is_refused_or_canonical(data: st.DataObject) -> None:
    document = json.loads(CONTENT)
    container, key = data.draw(st.sampled_from(list(places(document))))
    container[key] = data.draw(json_values)
    content = json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"
    assert is_refused(content) or bytes_from_manifest(manifest_from_bytes(content)) == content


def test_a_file_over_the_cap_is_refused_unparsed() -> None:
    assert "larger than 4194304 bytes" in refused(CONTENT + b" " * MAX_MANIFEST_BYTES)
