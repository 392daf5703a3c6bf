"""A chat model as one engine: its tensors, and the shapes that it is built for.

Sizes: lanes run together, `chunk` tokens of a lane a step, `wanted` of them with logits. What the
engine says of its own inputs decides where it was built elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge.chat.spec import DecoderSpec, Form, cache_inputs
from edge.manifest import Precision
from edge.spec import Profile, ShapeRange

WHOLE_FORMS: tuple[Form, ...] = ("scatter", "scatter-primitive", "prefix")
INPUT_IDS, START, ROWS, LOGITS = "input_ids", "start", "rows", "logits"
CHUNK = 512
WANTED = 16

Shape = tuple[int, ...]
# Smallest and largest shape of an input.
Bounds = tuple[Shape, Shape]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one run of an engine is given; prefix: positions of the cache, of that form alone."""

    lanes: int
    tokens: int
    wanted: int
    prefix: int | None = None

    def shapes(self, spec: DecoderSpec) -> dict[str, Shape]:
        """Return the shape of every input."""
        cache: Shape = (self.lanes, spec.kv_heads, spec.context, spec.head_dim)
        if self.prefix is not None:
            cache = (self.prefix, self.lanes, spec.kv_heads, spec.head_dim)
        return {
            INPUT_IDS: (self.lanes, self.tokens),
            START: (self.lanes,),
            ROWS: (self.lanes, self.wanted),
            **dict.fromkeys(cache_inputs(spec), cache),
        }


def whole_profiles(spec: DecoderSpec, precision: Precision) -> tuple[Profile, ...]:
    """Return the profiles to build a graph of form "prefix" for, on the device.

    spec: with its lanes, which are a number in the graph where there is one. Weights that are
    floats get one profile, as TensorRT may keep them once for each.
    """
    lanes, chunk = spec.lanes or 1, min(CHUNK, spec.context)
    wanted, half = min(WANTED, chunk), max(1, spec.context // 2)

    def profile(*runs: Run) -> Profile:
        low, usual, high = (run.shapes(spec) for run in runs)
        return Profile(
            ranges={
                name: ShapeRange(min=low[name], opt=usual[name], max=high[name])
                for name in low
                if not (lanes == 1 and name == START)
            }
        )

    smallest = Run(lanes=1, tokens=1, wanted=1, prefix=1)
    usual = Run(lanes=1, tokens=1, wanted=1, prefix=half)
    one = Run(lanes=lanes, tokens=1, wanted=1, prefix=spec.context)
    most = Run(lanes=lanes, tokens=chunk, wanted=wanted, prefix=spec.context)
    if precision not in {"int8", "int4"}:
        return (profile(smallest, usual, most),)
    prefill = Run(lanes=1, tokens=chunk, wanted=1, prefix=half)
    return profile(smallest, usual, one), profile(smallest, prefill, most)
