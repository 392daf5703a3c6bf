"""How close the answers of a trial must be to those of the bundle before, and why so.

Both bundles promise an error against golden answers, which are fp32's: their `tolerance` by
precision. What the publisher changed on purpose shows in the golden answers themselves, wherever
both bundles ask the same. By the triangle inequality nothing else may lie between two answers:

    |new - old| <= |new - its golden| + |its golden - old golden| + |old golden - old|
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from edge.capture.answers import Closeness
from edge.manifest import GoldenCase, Manifest, Model
from edge.self_test import relative_error, tensor_from_golden

# Of a path in a manifest; raises EdgeError.
Read = Callable[[str], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answering:
    """A bundle that answers. variants: by model, which one does. read: its golden files."""

    manifest: Manifest
    variants: Mapping[str, str]
    read: Read


def closeness_by_model(
    now: Answering, before: Answering | None, *, most: float
) -> dict[str, Closeness]:
    """Return what is asked of each model that answers now.

    most: the widest tolerance, whatever the manifests promise. Without a bundle before it is taken:
    nobody knows what bundle made the recording.
    """
    found = {}
    for model in now.manifest.models:
        if model.name not in now.variants:
            continue
        then = None if before is None else _model(before.manifest, model.name)
        tolerance = most
        if before is not None and then is not None:
            tolerance = _promised(model, now.variants.get(model.name))
            tolerance += _promised(then, before.variants.get(model.name))
            tolerance += _meant(now, model, before, then)
        found[model.name] = Closeness(
            tolerance=min(tolerance, most),
            scores=None if model.classes is None else model.classes.output,
        )
    return found


def _promised(model: Model, variant: str | None) -> float:
    """Return the tolerance of the variant that answers, or the widest if nobody knows which."""
    for candidate in model.variants:
        if candidate.id == variant:
            return model.golden.tolerance[candidate.precision]
    return max(model.golden.tolerance.values())


def _meant(now: Answering, model: Model, before: Answering, then: Model) -> float:
    """Return how far the golden answers to the same questions are apart: 0 where none are."""
    asked = {_question(before.manifest, case): case for case in then.golden.cases}
    errors = [0.0]
    for case in model.golden.cases:
        same = asked.get(_question(now.manifest, case))
        if same is not None:
            errors += _distances(now, case, before, same)
    return max(errors)


def _distances(
    now: Answering, case: GoldenCase, before: Answering, same: GoldenCase
) -> Iterator[float]:
    references = {tensor.name: tensor for tensor in same.outputs}
    for tensor in case.outputs:
        reference = references.get(tensor.name)
        if reference is None or reference.shape != tensor.shape:
            continue
        error = relative_error(
            tensor_from_golden(tensor, now.read), tensor_from_golden(reference, before.read)
        )
        if math.isfinite(error):
            yield error


def _question(manifest: Manifest, case: GoldenCase) -> tuple[tuple[str, str], ...]:
    return tuple((tensor.name, manifest.artifact(tensor.artifact).sha256) for tensor in case.inputs)


def _model(manifest: Manifest, name: str) -> Model | None:
    return next((model for model in manifest.models if model.name == name), None)
