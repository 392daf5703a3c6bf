import numpy as np
import pytest

from edge.errors import InferenceError
from edge.spec import Feeds, Profile, ShapeRange
from edge.warm_up import RUNS, shaped_feeds, warm_up
from tests.fakes import FakeClock

IDS = ShapeRange(min=(1, 4), opt=(2, 4), max=(5, 8))
PROFILE = Profile(ranges={"ids": IDS, "mask": IDS})
FEEDS = {
    "ids": np.array([[1, 2, 3, 4], [5, 6, 7, 8]]),
    "mask": np.ones((2, 4), np.int64),
}


def test_every_shape_of_the_profile_is_run_with_real_values() -> None:
    shapes: list[tuple[int, ...]] = []

    def run(feeds: Feeds) -> None:
        assert feeds["ids"].shape == feeds["mask"].shape
        assert set(feeds["ids"].ravel()) <= set(FEEDS["ids"].ravel())
        shapes.append(feeds["ids"].shape)

    assert warm_up(PROFILE, FEEDS, run) == 3 * RUNS
    assert shapes == [shape for shape in ((1, 4), (2, 4), (5, 8)) for _ in range(RUNS)]


def test_values_repeat_along_every_axis() -> None:
    largest = list(shaped_feeds(PROFILE, FEEDS))[-1]["ids"]
    np.testing.assert_array_equal(largest[2], [1, 2, 3, 4, 1, 2, 3, 4])
    np.testing.assert_array_equal(largest[4], largest[0])


def test_shapes_that_are_the_same_run_once_and_slow_ones_fewer_times() -> None:
    clock = FakeClock()
    one = ShapeRange(min=(2, 4), opt=(2, 4), max=(2, 4))
    profile = Profile(ranges={"ids": one, "mask": one})
    assert warm_up(profile, FEEDS, lambda _: clock.advance(60), clock=clock) == 1


def test_an_input_that_no_profile_bounds_keeps_its_shape() -> None:
    (feeds,) = shaped_feeds(Profile(ranges={}), FEEDS)
    assert feeds["ids"].shape == (2, 4)


def test_a_failure_is_the_callers() -> None:
    def run(_: Feeds) -> None:
        raise InferenceError("no memory for the largest batch")

    with pytest.raises(InferenceError, match="largest batch"):
        warm_up(PROFILE, FEEDS, run)
