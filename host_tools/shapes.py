"""Shapes: flags to Profile, names for the dimensions that vary, and the shapes to test.

A dimension varies when min and max of its axis differ. Names are stable, so that two exports of
one model agree: "batch" for axis 0 if it varies alike in all inputs; inputs that vary alike on
another axis share one name there ("sequence", "height", "width", else "axis_N").
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

from edge.errors import UsageError
from edge.spec import Dim, Profile, ShapeRange
from host_tools.errors import ExportError

Shape = tuple[int, ...]
Shapes = dict[str, Shape]
Dims = dict[str, tuple[Dim, ...]]

MAX_POINTS = 16
MAX_RANK = 8
EXAMPLE = "--shape pixels=1x3x224x224:8x3x224x224:32x3x224x224"
_SHAPE = re.compile(r"[1-9][0-9]{0,8}(x[1-9][0-9]{0,8})*")
_AXIS_NAMES: Mapping[tuple[int, int], str] = {
    (2, 1): "sequence",
    (3, 1): "sequence",
    (4, 2): "height",
    (4, 3): "width",
}


def profile_from_flags(flags: Sequence[str]) -> Profile:
    """Return the Profile that `name=MIN:OPT:MAX` flags spell; `name=SHAPE` is a fixed one.

    Raises UsageError naming the flag that cannot be read.
    """
    ranges: dict[str, ShapeRange] = {}
    for flag in flags:
        name, equals, text = flag.rpartition("=")
        if not equals or not name:
            raise _bad(flag, "is not NAME=SHAPE or NAME=MIN:OPT:MAX")
        if name in ranges:
            raise _bad(flag, f"gives input {name!r} a second time")
        parts = text.split(":")
        if len(parts) not in {1, 3}:
            raise _bad(flag, f"has {len(parts)} shapes, give one (fixed) or three (min:opt:max)")
        shapes = [_shape(flag, part) for part in parts]
        ranges[name] = _range(flag, shapes if len(shapes) == 3 else shapes * 3)
    return Profile(ranges=ranges)


def fixed_profile(shapes: Mapping[str, Shape]) -> Profile:
    """Return the Profile in which nothing varies."""
    return Profile(ranges={name: ShapeRange(min=s, opt=s, max=s) for name, s in shapes.items()})


def complete_profile(given: Profile, defaults: Profile, *, leader: str | None = None) -> Profile:
    """Return a Profile with one range per input of the model, in the model's order.

    defaults: the range of every input without a flag; with a leader, the leader's flag goes first.
    Raises UsageError for a flag of an unknown input, or of another rank than the default.
    """
    for name, bounds in given.ranges.items():
        default = defaults.ranges.get(name)
        if default is None:
            known = ", ".join(defaults.ranges)
            raise UsageError(f"--shape {name}=...: the model has no such input; it takes {known}")
        if len(bounds.min) != len(default.opt):
            raise UsageError(
                f"--shape {name}={shape_text(bounds.min)}: rank {len(bounds.min)}, but the model "
                f"takes rank {len(default.opt)}, for example {shape_text(default.opt)}"
            )
    ranges = {}
    for name, default in defaults.ranges.items():
        led = given.ranges.get(leader, default) if leader is not None else default
        ranges[name] = given.ranges.get(name, led)
    return Profile(ranges=ranges)


def dims_from_profile(profile: Profile) -> Dims:
    """Return the dimensions of every input: an int where it is fixed, a name where it varies."""
    names: dict[tuple[int, tuple[int, int, int]], str] = {}
    taken: set[str] = set()
    dims: Dims = {}
    for input_name, bounds in profile.ranges.items():
        axes: list[Dim] = []
        for axis, sizes in enumerate(zip(bounds.min, bounds.opt, bounds.max, strict=True)):
            if sizes[0] == sizes[2]:
                axes.append(sizes[0])
                continue
            if (axis, sizes) not in names:
                plain = _plain_name(profile, axis, len(bounds.min))
                name = plain if plain not in taken else f"{input_name}_{plain}"
                taken.add(name)
                names[axis, sizes] = name
            axes.append(names[axis, sizes])
        dims[input_name] = tuple(axes)
    return dims


def sizes_from_dims(profile: Profile, dims: Dims) -> dict[str, tuple[int, int, int]]:
    """Return (min, opt, max) of every named dimension.

    Raises UsageError if two inputs share a dimension but not its range.
    """
    sizes: dict[str, tuple[int, int, int]] = {}
    for input_name, axes in dims.items():
        bounds = profile.ranges[input_name]
        for axis, dim in enumerate(axes):
            if isinstance(dim, int):
                continue
            own = (bounds.min[axis], bounds.opt[axis], bounds.max[axis])
            if sizes.setdefault(dim, own) != own:
                raise UsageError(
                    f"input {input_name!r}: axis {axis} is the dimension {dim!r}, which another "
                    f"input gives the range {sizes[dim]}, not {own}; give both the same range"
                )
    return sizes


def points_from_dims(sizes: Mapping[str, tuple[int, int, int]]) -> tuple[dict[str, int], ...]:
    """Return the sizes to test, each a value per named dimension; at most MAX_POINTS.

    All at min, opt and max come first, then each one alone at max, then the other corners, then
    combinations with opt. No point repeats, so the largest shape is run once.
    """
    low, middle, high = ({name: s[i] for name, s in sizes.items()} for i in range(3))
    candidates = itertools.chain(
        [low, middle, high],
        ({**low, name: high[name]} for name in sizes),
        _combinations(sizes, (0, 2)),
        _combinations(sizes, (0, 1, 2)),
    )
    points: list[dict[str, int]] = []
    for point in candidates:
        if point not in points:
            points.append(point)
        if len(points) == MAX_POINTS:
            break
    return tuple(points)


def trace_point(sizes: Mapping[str, tuple[int, int, int]]) -> dict[str, int]:
    """Return the sizes to trace at: opt, but never 1, which exporters take for a constant."""
    return {name: opt if opt > 1 else high for name, (_, opt, high) in sizes.items()}


def shapes_at(dims: Dims, point: Mapping[str, int]) -> Shapes:
    """Return the shape of every input at one point."""
    return {
        name: tuple(dim if isinstance(dim, int) else point[dim] for dim in axes)
        for name, axes in dims.items()
    }


def output_dims(
    name: str, points: Sequence[Mapping[str, int]], observed: Sequence[Shape]
) -> tuple[Dim, ...]:
    """Return the dimensions of an output from the shape it had at every point.

    An axis that always equals an input dimension takes its name; one that varies otherwise gets
    a name of its own. Raises ExportError if the rank varies.
    """
    ranks = {len(shape) for shape in observed}
    if len(ranks) != 1:
        raise ExportError(f"output {name!r} has rank {sorted(ranks)} depending on the input shape")
    dims: list[Dim] = []
    for axis, column in enumerate(zip(*observed, strict=True)):
        same = [d for d in points[0] if all(p[d] == v for p, v in zip(points, column, strict=True))]
        if len(set(column)) == 1:
            dims.append(column[0])
        else:
            dims.append(same[0] if same else f"{name}_axis_{axis}")
    return tuple(dims)


def shape_text(shape: Sequence[Dim]) -> str:
    """Return a shape as flags spell it, "1x3x224x224"; "scalar" for rank 0."""
    return "x".join(str(dim) for dim in shape) or "scalar"


def shapes_text(shapes: Mapping[str, Shape]) -> str:
    """Return the shapes of all inputs in one line."""
    return " ".join(f"{name}={shape_text(shape)}" for name, shape in shapes.items())


def _plain_name(profile: Profile, axis: int, rank: int) -> str:
    if axis == 0:
        firsts = {(r.min[:1], r.opt[:1], r.max[:1]) for r in profile.ranges.values()}
        if len(firsts) == 1:
            return "batch"
    return _AXIS_NAMES.get((rank, axis), f"axis_{axis}")


def _combinations(
    sizes: Mapping[str, tuple[int, int, int]], picks: tuple[int, ...]
) -> Iterator[dict[str, int]]:
    for choice in itertools.product(picks, repeat=len(sizes)):
        yield {name: s[i] for (name, s), i in zip(sizes.items(), choice, strict=True)}


def _shape(flag: str, text: str) -> Shape:
    if not _SHAPE.fullmatch(text):
        raise _bad(flag, f"has the shape {text!r}, not positive sizes joined by x")
    shape = tuple(int(size) for size in text.split("x"))
    if len(shape) > MAX_RANK:
        raise _bad(flag, f"has rank {len(shape)}, engines take {MAX_RANK} at most")
    return shape


def _range(flag: str, shapes: list[Shape]) -> ShapeRange:
    low, middle, high = shapes
    if not len(low) == len(middle) == len(high):
        raise _bad(flag, "has shapes of different rank")
    for axis, (a, b, c) in enumerate(zip(low, middle, high, strict=True)):
        if not a <= b <= c:
            raise _bad(flag, f"has {a}:{b}:{c} on axis {axis}; sizes must go up, min:opt:max")
    return ShapeRange(min=low, opt=middle, max=high)


def _bad(flag: str, problem: str) -> UsageError:
    return UsageError(f"--shape {flag} {problem}; for example {EXAMPLE}")
