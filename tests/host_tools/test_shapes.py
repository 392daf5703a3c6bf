from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import UsageError
from edge.spec import Profile, ShapeRange
from host_tools.errors import ExportError
from host_tools.shapes import (
    MAX_POINTS,
    complete_profile,
    dims_from_profile,
    fixed_profile,
    output_dims,
    points_from_dims,
    profile_from_flags,
    shapes_at,
    sizes_from_dims,
    trace_point,
)


def test_three_shapes_become_min_opt_and_max() -> None:
    profile = profile_from_flags(["x=1x3x224x224:8x3x224x224:32x3x224x224"])
    assert profile.ranges == {
        "x": ShapeRange(min=(1, 3, 224, 224), opt=(8, 3, 224, 224), max=(32, 3, 224, 224))
    }


def test_one_shape_is_fixed() -> None:
    assert profile_from_flags(["x=7"]).ranges["x"] == ShapeRange(min=(7,), opt=(7,), max=(7,))


def test_an_input_name_may_hold_colons_dots_and_equal_signs() -> None:
    assert set(profile_from_flags(["a:b.c/d=1x2", "e=f=3"]).ranges) == {"a:b.c/d", "e=f"}


@pytest.mark.parametrize(
    ("flag", "problem"),
    [
        ("1x3", "is not NAME=SHAPE"),
        ("=1x3", "is not NAME=SHAPE"),
        ("x=", "''"),
        ("x=1x3:2x3", "has 2 shapes"),
        ("x=1:2:3:4", "has 4 shapes"),
        ("x=1,3", "'1,3'"),
        ("x=0x3", "'0x3'"),
        ("x=-1x3", "'-1x3'"),
        ("x=1x3x", "'1x3x'"),
        ("x=1X3", "'1X3'"),
        ("x=1x3:2x3x4:8x3", "different rank"),
        ("x=4x3:2x3:8x3", "4:2:8 on axis 0"),
        ("x=1x9:2x9:8x3", "9:9:3 on axis 1"),
        ("x=" + "x".join("1" * 9), "rank 9"),
        ("x=9999999999", "'9999999999'"),
    ],
)
def test_a_wrong_flag_is_named_with_the_problem_and_an_example(flag: str, problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        profile_from_flags([flag])
    message = str(caught.value)
    assert f"--shape {flag}" in message
    assert problem in message
    assert "for example --shape pixels=1x3x224x224:8x3x224x224:32x3x224x224" in message


def test_a_flag_given_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="'x' a second time"):
        profile_from_flags(["x=1", "x=2"])


@given(st.text(max_size=30))
@settings(max_examples=300)
def test_any_text_is_a_profile_or_a_usage_error(text: str) -> None:
    try:
        profile = profile_from_flags([text])
    except UsageError:
        return
    for bounds in profile.ranges.values():
        triples = zip(bounds.min, bounds.opt, bounds.max, strict=True)
        assert all(1 <= low <= middle <= high for low, middle, high in triples)


def test_inputs_without_a_flag_keep_their_default() -> None:
    defaults = fixed_profile({"a": (2, 3), "b": (5,)})
    profile = complete_profile(profile_from_flags(["a=1x3:2x3:4x3"]), defaults)
    assert profile.ranges["b"] == ShapeRange(min=(5,), opt=(5,), max=(5,))
    assert list(profile.ranges) == ["a", "b"]


def test_inputs_without_a_flag_follow_the_leader() -> None:
    defaults = fixed_profile({"ids": (1, 8), "mask": (1, 8), "types": (1, 8)})
    given_ = profile_from_flags(["ids=1x4:2x8:8x16", "types=1x4"])
    profile = complete_profile(given_, defaults, leader="ids")
    assert profile.ranges["mask"] == profile.ranges["ids"]
    assert profile.ranges["types"].max == (1, 4)


def test_a_flag_of_an_unknown_input_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"--shape y=.*takes a, b"):
        complete_profile(profile_from_flags(["y=1"]), fixed_profile({"a": (1,), "b": (1,)}))


def test_a_flag_of_another_rank_shows_the_right_one() -> None:
    with pytest.raises(UsageError, match="rank 2, but the model takes rank 4, for example 1x3x8x8"):
        complete_profile(profile_from_flags(["x=1x3"]), fixed_profile({"x": (1, 3, 8, 8)}))


def test_axis_zero_is_batch_when_it_varies_alike_everywhere() -> None:
    profile = profile_from_flags(["ids=1x4:2x8:8x16", "mask=1x4:2x8:8x16"])
    assert dims_from_profile(profile) == {
        "ids": ("batch", "sequence"),
        "mask": ("batch", "sequence"),
    }


def test_an_image_has_batch_height_and_width() -> None:
    profile = profile_from_flags(["x=1x3x32x32:2x3x64x64:4x3x96x96"])
    assert dims_from_profile(profile) == {"x": ("batch", 3, "height", "width")}


def test_axes_that_vary_differently_have_different_names() -> None:
    profile = profile_from_flags(["a=1x4:2x8:8x16", "b=1x4:2x8:8x32", "c=3x4"])
    dims = dims_from_profile(profile)
    assert dims["a"] == ("axis_0", "sequence")
    assert dims["b"] == ("axis_0", "b_sequence")
    assert dims["c"] == (3, 4)


def test_a_dimension_with_two_ranges_is_refused() -> None:
    profile = profile_from_flags(["a=1:2:4", "b=1:2:8"])
    with pytest.raises(UsageError, match=r"'n'.*give both the same range"):
        sizes_from_dims(profile, {"a": ("n",), "b": ("n",)})


def test_points_hold_every_corner_of_two_dimensions_once() -> None:
    points = points_from_dims({"batch": (1, 8, 32), "sequence": (8, 128, 256)})
    pairs = [(p["batch"], p["sequence"]) for p in points]
    assert sorted(pairs) == sorted(itertools.product((1, 8, 32), (8, 128, 256)))


def test_a_fixed_model_has_one_point() -> None:
    assert points_from_dims({}) == ({},)


def test_equal_sizes_are_not_tested_twice() -> None:
    assert [p["n"] for p in points_from_dims({"n": (1, 1, 4)})] == [1, 4]


def test_many_dimensions_stay_bounded_and_keep_min_opt_and_max() -> None:
    sizes = {f"d{i}": (1, 2, 3) for i in range(10)}
    points = points_from_dims(sizes)
    assert len(points) == MAX_POINTS
    for i in range(3):
        assert {name: s[i] for name, s in sizes.items()} in points


def test_shapes_at_fills_in_the_sizes() -> None:
    assert shapes_at({"x": ("batch", 3)}, {"batch": 7}) == {"x": (7, 3)}


def test_a_trace_never_sees_a_varying_dimension_of_one() -> None:
    assert trace_point({"a": (1, 1, 4), "b": (1, 3, 9)}) == {"a": 4, "b": 3}


def test_output_dimensions_follow_from_what_was_observed() -> None:
    points = points_from_dims({"batch": (1, 2, 4), "sequence": (1, 8, 16)})
    observed = [(p["batch"], 384, p["sequence"], p["sequence"] + 1) for p in points]
    assert output_dims("y", points, observed) == ("batch", 384, "sequence", "y_axis_3")


def test_an_output_of_varying_rank_is_refused() -> None:
    with pytest.raises(ExportError, match=r"'y' has rank \[1, 2\]"):
        output_dims("y", ({"n": 1}, {"n": 2}), [(1,), (2, 2)])


def test_profiles_of_scalars_are_fixed() -> None:
    profile = complete_profile(Profile(ranges={}), fixed_profile({"s": ()}))
    assert dims_from_profile(profile) == {"s": ()}
