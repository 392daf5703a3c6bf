"""Runs before a model is served, so that no client pays for the first ones.

Every backend prepares a shape when it first sees it: allocations, tactics, CUDA graphs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np

from edge.spec import AnyArray, Feeds, Profile

# A session on TensorRT has earned a graph at the second run of a shape in each of its two banks.
RUNS = 4
# Of one shape; the first run is always made.
BUDGET_S = 2.0


def warm_up(
    profile: Profile,
    feeds: Feeds,
    run: Callable[[Feeds], object],
    *,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Run the smallest, usual and largest shapes several times each, and return how many runs.

    feeds: real values, as of a golden case; they are repeated or cut to the shapes.
    Raises whatever run raises.
    """
    runs = 0
    for shaped in shaped_feeds(profile, feeds):
        begun = clock()
        for _ in range(RUNS):
            run(shaped)
            runs += 1
            if clock() - begun > BUDGET_S:
                break
    return runs


def shaped_feeds(profile: Profile, feeds: Feeds) -> Iterator[Feeds]:
    """Yield feeds in the smallest, usual and largest shapes of a profile, each shape once."""
    seen = set()
    for size in ("min", "opt", "max"):
        shapes = {
            name: getattr(profile.ranges[name], size) if name in profile.ranges else array.shape
            for name, array in feeds.items()
        }
        key = tuple(sorted(shapes.items()))
        if key not in seen:
            seen.add(key)
            yield {name: _repeated(array, shapes[name]) for name, array in feeds.items()}


def _repeated(array: AnyArray, shape: tuple[int, ...]) -> AnyArray:
    """Return an array whose values continue periodically along every axis."""
    for axis, size in enumerate(shape):
        if array.shape[axis] != size:
            array = np.take(array, range(size), axis=axis, mode="wrap")
    return np.ascontiguousarray(array)
