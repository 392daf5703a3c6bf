"""May requests run as one? Tried on real samples before a bundle says so.

Rows must not see each other, and where inputs share a ragged dimension with an attention mask, the
model must ignore what the mask leaves out.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edge.batching import Plan
from edge.manifest import Batching
from edge.self_test import relative_error
from edge.spec import AnyArray, Feeds, Profile, TensorSpec

MASK = "attention_mask"
# What fills up a row behind its end; every one of them is left out by the mask.
PADS = {"input_ids": 0, MASK: 0, "token_type_ids": 0}
TOLERANCE = 1e-3  # relative; kernels may sum in another order
ROWS = 4

Run = Callable[[Feeds], dict[str, AnyArray]]


def batching_of(
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    profile: Profile,
    *,
    feeds: Feeds,
    run: Run,
) -> tuple[Batching | None, str]:
    """Return how requests may be joined, and the reason in words.

    feeds: rows that were read together. run: the fp32 model.
    """
    batch = _first_dim(inputs, outputs)
    largest = min((bounds.max[0] for bounds in profile.ranges.values() if bounds.max), default=1)
    if batch is None or largest == 1:
        return None, "requests run one by one: the profile has no batch that varies"
    ragged, error = _ragged(inputs), 0.0
    candidates = [Batching()]
    if ragged is not None:
        pads = {spec.name: PADS[spec.name] for spec in inputs}
        candidates.insert(0, Batching(ragged=ragged, pads=pads))
    for batching in candidates:
        error = _error(batching, inputs, outputs, profile, feeds, run)
        if error <= TOLERANCE:
            padded = f", padded in {batching.ragged!r}" if batching.ragged else ""
            return batching, f"requests may run together{padded} (worst error {error:.1e})"
    return None, f"requests run one by one: rows of a batch differ from single ones by {error:.1e}"


def _error(
    batching: Batching,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    profile: Profile,
    feeds: Feeds,
    run: Run,
) -> float:
    """Return the worst relative error of rows that ran together, against each by itself."""
    plan = Plan(batching, inputs=inputs, outputs=outputs, profile=profile)
    singles = _singles(feeds, profile, batching.ragged, inputs)[: plan.max_rows]
    if len(singles) < 2:
        return 0.0
    extents = [plan.extent(single) for single in singles]
    answers = plan.split(run(plan.join(singles)), extents)
    return max(
        relative_error(answer[name], value)
        for single, answer in zip(singles, answers, strict=True)
        for name, value in run(single).items()
    )


def _singles(
    feeds: Feeds, profile: Profile, ragged: str | None, inputs: tuple[TensorSpec, ...]
) -> list[Feeds]:
    """Return single rows of some feeds, of several lengths where these may differ."""
    count = min(ROWS, len(next(iter(feeds.values()))))
    singles: list[Feeds] = [
        {name: array[row : row + 1] for name, array in feeds.items()} for row in range(count)
    ]
    if ragged is None:
        return singles
    axis = {spec.name: spec.shape.index(ragged) for spec in inputs}
    low = max(profile.ranges[name].min[at] for name, at in axis.items())
    cut: list[Feeds] = []
    for number, single in enumerate(singles):
        size = max(low, next(iter(single.values())).shape[1] - 3 * number, 1)
        cut.append({n: np.take(a, range(size), axis=axis[n]) for n, a in single.items()})
    return cut


def _first_dim(inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> str | None:
    first = {spec.shape[0] if spec.shape else 0 for spec in (*inputs, *outputs)}
    name = next(iter(first)) if len(first) == 1 else None
    return name if isinstance(name, str) else None


def _ragged(inputs: tuple[TensorSpec, ...]) -> str | None:
    """Return the dimension that text inputs share, if a mask is among them."""
    names = {spec.name for spec in inputs if spec.datatype != "BYTES"}
    if MASK not in names or len(names) != len(inputs) or not names <= set(PADS):
        return None
    second = {spec.shape[1] for spec in inputs if len(spec.shape) == 2}
    name = next(iter(second)) if len(second) == 1 else None
    return name if isinstance(name, str) else None
