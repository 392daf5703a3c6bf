from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import InputError
from edge.spec import (
    NUMPY_FROM_DATATYPE,
    Datatype,
    Dim,
    Profile,
    ShapeRange,
    TensorSpec,
    check_feeds,
    datatype_from_numpy,
)

# Tensor data types of the Open Inference Protocol, with what C calls them in `struct`.
WIRE = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "<H",
    "UINT32": "<I",
    "UINT64": "<Q",
    "INT8": "b",
    "INT16": "<h",
    "INT32": "<i",
    "INT64": "<q",
    "FP16": "<e",
    "FP32": "<f",
    "FP64": "<d",
    "BYTES": "O",
}
SPECS = (
    TensorSpec(name="ids", datatype="INT64", shape=("batch", "length")),
    TensorSpec(name="mask", datatype="FP32", shape=("batch", "length", 3)),
)
PROFILE = Profile(
    ranges={
        "ids": ShapeRange(min=(1, 2), opt=(4, 8), max=(8, 16)),
        "mask": ShapeRange(min=(1, 2, 3), opt=(4, 8, 3), max=(8, 16, 3)),
    }
)


def feeds(batch: int = 2, length: int = 5) -> dict[str, np.ndarray]:
    return {
        "ids": np.zeros((batch, length), np.int64),
        "mask": np.zeros((batch, length, 3), np.float32),
    }


def test_the_datatypes_are_those_of_the_protocol() -> None:
    assert set(get_args(Datatype)) == set(WIRE) == set(NUMPY_FROM_DATATYPE)


@pytest.mark.parametrize("name", WIRE)
def test_every_datatype_is_its_numpy_dtype_and_back(name: Datatype) -> None:
    spec = TensorSpec(name="x", datatype=name, shape=())
    assert spec.dtype == np.dtype(WIRE[name])
    assert datatype_from_numpy(spec.dtype) == name
    assert datatype_from_numpy(spec.dtype.newbyteorder(">")) == name


def test_the_second_c_name_of_a_size_is_the_same_datatype() -> None:
    assert {datatype_from_numpy(np.dtype(c)) for c in "lq"} == {"INT64"}
    assert {datatype_from_numpy(np.dtype(c)) for c in "LQ"} == {"UINT64"}


@pytest.mark.parametrize("dtype", ["U3", "S3", "c8", "c16", "M8[s]", "m8[s]", "V4", "i4,f4"])
def test_a_dtype_that_no_engine_takes_is_refused(dtype: str) -> None:
    with pytest.raises(InputError, match="has no tensor datatype; convert to one of bool, uint8"):
        datatype_from_numpy(np.dtype(dtype))


def test_a_varying_dimension_is_minus_one_on_the_wire() -> None:
    assert [spec.wire_shape for spec in SPECS] == [[-1, -1], [-1, -1, 3]]
    assert TensorSpec(name="x", datatype="BOOL", shape=()).wire_shape == []


@pytest.mark.parametrize(("batch", "length"), [(1, 2), (8, 16), (4, 8)])
def test_feeds_inside_the_profile_are_accepted(batch: int, length: int) -> None:
    check_feeds(feeds(batch, length), SPECS, PROFILE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"idz": np.zeros(1)}, "input 'idz' is unknown; the model takes 'ids', 'mask'"),
        ({"mask": None}, "input 'mask' is missing; the model takes 'ids', 'mask'"),
        (
            {"ids": np.zeros((2, 5), np.int32)},
            "input 'ids': datatype is INT32, the model takes INT64; convert before sending",
        ),
        (
            {"ids": np.zeros((2, 5), complex)},
            "input 'ids': datatype is complex128, the model takes INT64; convert before sending",
        ),
        (
            {"ids": np.zeros((2, 5), ">i8")},
            "input 'ids': datatype is >i8, the model takes INT64; convert before sending",
        ),
        (
            {"ids": np.zeros(5, np.int64)},
            "input 'ids': got rank 1 (shape [5]), the model takes rank 2 (shape [-1, -1])",
        ),
        (
            {"mask": np.zeros((2, 5, 3, 1), np.float32)},
            "input 'mask': got rank 4 (shape [2, 5, 3, 1]), the model takes rank 3 "
            "(shape [-1, -1, 3])",
        ),
        (
            {"mask": np.zeros((2, 5, 4), np.float32)},
            "input 'mask': shape [2, 5, 4] has 4 on axis 2, the model accepts 3; resize, or "
            "export with a wider --shape",
        ),
        (
            {"ids": np.zeros((9, 5), np.int64)},
            "input 'ids': shape [9, 5] has 9 on axis 0, the model accepts 1..8; resize, or "
            "export with a wider --shape",
        ),
        (
            {"ids": np.zeros((2, 1), np.int64)},
            "input 'ids': shape [2, 1] has 1 on axis 1, the model accepts 2..16; resize, or "
            "export with a wider --shape",
        ),
        (
            {"mask": np.zeros((3, 5, 3), np.float32)},
            "input 'mask': dimension 'batch' is 3, but 2 in input 'ids'; send both with the same "
            "size",
        ),
    ],
)
def test_each_kind_of_mismatch_says_what_to_do(
    changes: dict[str, np.ndarray | None], message: str
) -> None:
    changed = {**feeds(), **changes}
    with pytest.raises(InputError) as caught:
        check_feeds({k: v for k, v in changed.items() if v is not None}, SPECS, PROFILE)
    assert str(caught.value) == message


def test_a_dimension_without_a_profile_has_no_upper_bound_but_is_not_empty() -> None:
    spec = TensorSpec(name="x", datatype="INT8", shape=("n",))
    check_feeds({"x": np.zeros(10**6, np.int8)}, (spec,), Profile(ranges={}))
    with pytest.raises(InputError, match=r"has 0 on axis 0, the model accepts 1\.\.; resize"):
        check_feeds({"x": np.zeros(0, np.int8)}, (spec,), Profile(ranges={}))


def test_one_name_twice_in_one_input_is_one_size() -> None:
    spec = TensorSpec(name="x", datatype="INT8", shape=("n", "n"))
    check_feeds({"x": np.zeros((3, 3), np.int8)}, (spec,), Profile(ranges={}))
    with pytest.raises(InputError, match="dimension 'n' is 4, but 3 in input 'x'"):
        check_feeds({"x": np.zeros((3, 4), np.int8)}, (spec,), Profile(ranges={}))


def test_no_value_is_copied_or_read() -> None:
    # A tebibyte by its shape, one byte in memory.
    vast = np.broadcast_to(np.int8(0), (1 << 40,))
    spec = TensorSpec(name="x", datatype="INT8", shape=("n",))
    check_feeds({"x": vast}, (spec,), Profile(ranges={}))


@dataclass(frozen=True)
class Case:
    """A model interface, and the shape of each input in a request that it must accept."""

    specs: tuple[TensorSpec, ...]
    profile: Profile
    shapes: dict[str, tuple[int, ...]]

    def feeds(self) -> dict[str, np.ndarray]:
        return {s.name: np.zeros(self.shapes[s.name], s.dtype) for s in self.specs}


@st.composite
def cases(draw: st.DrawFn) -> Case:
    sizes = {name: draw(st.integers(1, 6)) for name in ("batch", "length")}
    low = {name: draw(st.integers(1, size)) for name, size in sizes.items()}
    high = {name: draw(st.integers(size, 9)) for name, size in sizes.items()}
    specs, ranges, shapes = [], {}, {}
    for name in draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True)):
        dims: list[Dim] = draw(st.lists(st.sampled_from([1, 3, *sizes]), max_size=3))
        datatype = draw(st.sampled_from(sorted(WIRE)))
        specs.append(TensorSpec(name=name, datatype=datatype, shape=tuple(dims)))
        shapes[name] = tuple(sizes.get(dim, dim) for dim in dims)
        ranges[name] = ShapeRange(
            min=tuple(low.get(dim, dim) for dim in dims),
            opt=shapes[name],
            max=tuple(high.get(dim, dim) for dim in dims),
        )
    return Case(tuple(specs), Profile(ranges=ranges), shapes)


@given(cases())
def test_every_request_inside_the_profile_is_accepted(case: Case) -> None:
    check_feeds(case.feeds(), case.specs, case.profile)


@given(cases(), st.data())
def test_every_single_change_to_the_outside_is_refused(case: Case, data: st.DataObject) -> None:
    changed: dict[str, Any] = case.feeds()
    spec = data.draw(st.sampled_from(case.specs))
    shape, bounds = case.shapes[spec.name], case.profile.ranges[spec.name]
    kinds = ["drop", "add", "datatype", "more rank"]
    if shape:
        kinds += ["less rank", "too small", "too large"]
    kind = data.draw(st.sampled_from(kinds))
    axis = data.draw(st.integers(0, len(shape) - 1)) if shape else 0
    if kind == "drop":
        del changed[spec.name]
    elif kind == "add":
        changed[spec.name + "'"] = np.zeros(shape, spec.dtype)
    elif kind == "datatype":
        other = data.draw(st.sampled_from(sorted(set(WIRE) - {spec.datatype})))
        changed[spec.name] = np.zeros(shape, WIRE[other])
    elif kind == "more rank":
        changed[spec.name] = changed[spec.name][None]
    elif kind == "less rank":
        changed[spec.name] = np.zeros(shape[1:], spec.dtype)
    else:
        size = bounds.min[axis] - 1 if kind == "too small" else bounds.max[axis] + 1
        changed[spec.name] = np.zeros((*shape[:axis], size, *shape[axis + 1 :]), spec.dtype)
    with pytest.raises(InputError):
        check_feeds(changed, case.specs, case.profile)


@given(cases(), st.data())
def test_a_name_that_two_places_share_cannot_differ(case: Case, data: st.DataObject) -> None:
    places = [(s.name, axis, dim) for s in case.specs for axis, dim in enumerate(s.shape)]
    name, axis, dim = data.draw(st.sampled_from(places)) if places else ("", 0, 0)
    shape = case.shapes.get(name, ())
    size = data.draw(st.integers(1, 9))
    if not isinstance(dim, str) or size == shape[axis]:
        return
    changed = case.feeds()
    changed[name] = np.zeros((*shape[:axis], size, *shape[axis + 1 :]), changed[name].dtype)
    bounds = case.profile.ranges[name]
    inside = bounds.min[axis] <= size <= bounds.max[axis]
    if inside and sum(other == dim for _, _, other in places) == 1:
        check_feeds(changed, case.specs, case.profile)
    else:
        with pytest.raises(InputError):
            check_feeds(changed, case.specs, case.profile)
