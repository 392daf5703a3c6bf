"""How close answers must be, against the sums worked out by hand."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from edge.classes import Classes
from edge.gate.closeness import Answering, closeness_by_model
from edge.manifest import Artifact, Manifest
from tests.bundles import Parts, affine_parts
from tests.models import affine

MOST = 10.0
INT8, FP32 = 0.125, 0.25


def answering(parts: Parts, variant: str | None = "int8") -> Answering:
    manifest, files = parts
    (model,) = manifest.models
    golden = replace(model.golden, tolerance={"int8": INT8, "fp32": FP32})
    artifacts = tuple(
        Artifact(path=path, size=len(content), sha256=hashlib.sha256(content).hexdigest())
        for path, content in files.items()
    )
    manifest = replace(manifest, models=(replace(model, golden=golden),), artifacts=artifacts)
    variants = {} if variant is None else {"affine": variant}
    return Answering(manifest=manifest, variants=variants, read=lambda path: files[path])


def tolerance(now: Answering, before: Answering | None, *, most: float = MOST) -> float:
    return closeness_by_model(now, before, most=most)["affine"].tolerance


def test_the_same_model_is_allowed_what_both_bundles_promise() -> None:
    parts = affine_parts(scale=2.0)
    assert tolerance(answering(parts), answering(parts)) == 2 * INT8
    assert tolerance(answering(parts), answering(parts, "fp32")) == INT8 + FP32
    assert tolerance(answering(parts), answering(parts, None)) == INT8 + FP32  # nobody knows which


def test_nobody_knows_what_made_a_recording() -> None:
    assert tolerance(answering(affine_parts()), None) == MOST


def test_what_the_golden_answers_say_was_changed_on_purpose_comes_on_top() -> None:
    old, new = answering(affine_parts(scale=2.0)), answering(affine_parts(scale=3.0))
    x = np.arange(8, dtype=np.float32).reshape(2, 4)  # the golden question
    was, now = (affine(x, scale=scale) for scale in (2.0, 3.0))
    moved = max(np.linalg.norm(now[name] - was[name]) / np.linalg.norm(was[name]) for name in was)
    assert moved > 0.1
    assert tolerance(new, old) == pytest.approx(2 * INT8 + moved, rel=1e-6)
    assert tolerance(new, old, most=0.3) == 0.3


def test_answers_to_other_questions_say_nothing_about_what_was_changed() -> None:
    manifest, files = affine_parts(scale=2.0)
    (question,) = (path for path in files if "/in/" in path)
    files[question] = bytes(len(files[question]))
    new = answering(affine_parts(scale=3.0))
    assert tolerance(new, answering((manifest, files))) == 2 * INT8


@pytest.mark.parametrize("scores", [None, "y"])
def test_of_a_classifier_the_best_class_counts(scores: str | None) -> None:
    now = answering(affine_parts())
    (model,) = now.manifest.models
    if scores is not None:
        model = replace(model, classes=Classes(output=scores, labels=("a", "b"), softmax=False))
    manifest: Manifest = replace(now.manifest, models=(model,))
    found = closeness_by_model(replace(now, manifest=manifest), None, most=MOST)
    assert found["affine"].scores == scores
