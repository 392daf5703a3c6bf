"""The accuracy that int8 may cost, and the search for the fewest float nodes that keep it."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from calibration.errors import GateError
from calibration.parts import row_count
from calibration.runtime import Runner
from edge.errors import UsageError
from edge.manifest import Accuracy
from edge.spec import Feeds

MAX_TRIES = 8
REASON = "needed for the accuracy budget"
# Score of a batch: (float outputs, int8 outputs, labels or None) -> a number, lower is better.
Score = Callable[[Feeds, Feeds, Any], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What int8 may cost: a metric, and the limit that it must keep.

    metric: "top1" (points lost), "cosine" or "sqnr" (at least so much), or "module:function", a
    Score that must not exceed the limit on average over batches.
    """

    metric: str
    limit: float

    def excess(self, accuracy: Accuracy, score: float | None = None) -> float:
        """Return by how much the budget is exceeded; zero or less is within it."""
        if self.metric == "top1":
            lost = (accuracy.fp32_top1_percent or 0.0) - (accuracy.int8_top1_percent or 0.0)
            return lost - self.limit
        if self.metric == "cosine":
            return self.limit - accuracy.cosine_mean
        if self.metric == "sqnr":
            return self.limit - accuracy.sqnr_db
        return math.inf if score is None or math.isnan(score) else score - self.limit


def budget_from_text(text: str) -> Budget:
    """Return the Budget of "top1=0.5"; raises UsageError."""
    metric, sign, limit = text.rpartition("=")
    try:
        value = float(limit)
    except ValueError:
        value = math.nan
    known = metric in {"top1", "cosine", "sqnr"} or ":" in metric
    if not sign or not known or not math.isfinite(value):
        raise UsageError(
            f"--budget {text!r}: write top1=0.5 (points lost), cosine=0.99, sqnr=20 or "
            "module:function=LIMIT"
        )
    return Budget(metric=metric, limit=value)


def score_from_name(name: str) -> Score:
    """Return the function that "module:function" names; raises UsageError."""
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"--budget {name}: {error}; give a function that can be imported"
        ) from error
    if not callable(found):
        raise UsageError(f"--budget {name}: it is not a function")
    score: Score = found
    return score


def mean_score(
    score: Score, model: onnx.ModelProto, quantized: onnx.ModelProto, part: Any, labels: Any
) -> float:
    """Return the mean of a Score over the batches of a part, by rows."""
    reference, rival, total, done = Runner(model), Runner(quantized), 0.0, 0
    for feeds in part:
        rows = row_count(feeds)
        truth = None if labels is None else labels[done : done + rows]
        total += rows * float(score(reference.run(feeds), rival.run(feeds), truth))
        done += rows
    return total / max(done, 1)


def search(
    names: Sequence[str], excess: Callable[[Sequence[str]], float], *, tries: int = MAX_TRIES
) -> tuple[str, ...]:
    """Return the fewest of these nodes that must stay float so that the excess is not positive.

    names: the most sensitive first. excess: by how much the budget is exceeded with these nodes in
    float; each call runs the judged samples once.
    Their number is found by bisection, then single ones are given back to int8, the least
    sensitive first, as long as the budget holds and tries are left.
    Raises GateError if even a single int8 node exceeds the budget.
    """
    if excess(()) <= 0:
        return ()
    low, high = 0, len(names) - 1  # low is known to fail; high leaves one node
    if excess(names[:high]) > 0:
        raise GateError(
            "no choice of float nodes keeps the accuracy budget, even one int8 node exceeds it; "
            "widen --budget, or give more samples"
        )
    while high - low > 1:
        middle = (low + high) // 2
        if excess(names[:middle]) <= 0:
            high = middle
        else:
            low = middle
    kept = list(names[:high])
    for name in list(reversed(kept[:-1]))[:tries]:
        fewer = [other for other in kept if other != name]
        if excess(fewer) <= 0:
            kept = fewer
    return tuple(kept)
