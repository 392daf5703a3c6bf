"""From a float model and samples to int8 models with evidence: collect, choose, judge.

The samples are used in parts that do not overlap: ranges are collected on the first, the method
is chosen on the second, the gate judges on the held-out set (the second if none is given).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from calibration.budget import REASON, Budget, mean_score, score_from_name, search
from calibration.checkpoint import Checkpoints
from calibration.collect import float_tensors, observe
from calibration.cost import Cost, predicted_cost
from calibration.errors import CalibrationError, GateError
from calibration.fit import FORMS, Fit, fit
from calibration.graph import int8_mac_percent, macs_by_node, prepared
from calibration.judge import Judged, Labels, Progress, judge
from calibration.kernels import integer_mac_percent
from calibration.methods import METHODS
from calibration.parts import Part, Reader, reader_for
from calibration.placement import Placement, without
from calibration.samples import Samples
from calibration.sensitivity import sensitivity
from edge.errors import UsageError
from edge.manifest import Accuracy

AUTO = "auto"
SELECTION_SHARE = 0.2
ADVISED_SAMPLES = 1000
SENSITIVITY_BATCHES = 2
SEARCH_ROWS = 128
WORST_LAYERS = 6
VIEW_BINS = 64
BUDGET_TRIES = 20  # of the progress bar; the search may take fewer or a few more


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Samples that calibration never sees, and their labels where there are any."""

    samples: Samples
    labels: Labels | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """One int8 form of the model, and how it compares with its parent."""

    model: onnx.ModelProto
    accuracy: Accuracy


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerView:
    """One layer for a person to look at: what its input held, and where it is clipped.

    counts: of |x| in equal bins over [0, amax]. clip: the chosen range.
    """

    node: str
    tensor: str
    sqnr_db: float
    counts: tuple[int, ...]
    amax: float
    clip: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """Both int8 forms, the ranges in them, and why these.

    tensorrt: the form of `qdq`; its share of int8 arithmetic is what the graph asks for.
    ort: the form of `ort_form`; its share is what ONNX Runtime runs in integer kernels here.
    gains_db: by change that brings the outputs closer; see `fit`. sensitivity_db: by node, where a
    budget needed it or `explain` asked for it; see `sensitivity`. worst: the layers with the
    lowest, the lowest first.
    """

    tensorrt: Quantized
    ort: Quantized
    method: str
    samples: int
    amax: dict[str, float]
    sqnr_db: dict[str, float]
    gains_db: dict[str, float]
    cost: Cost
    kept_float: dict[str, str]
    sensitivity_db: dict[str, float]
    worst: tuple[LayerView, ...]


def calibrate(
    model: onnx.ModelProto,
    samples: Samples,
    *,
    method: str = AUTO,
    keep_float: Sequence[str] = (),
    batch: int = 16,
    held_out: HeldOut | None = None,
    labels: Labels | None = None,
    budget: Budget | None = None,
    explain: bool = False,
    improve: bool = True,
    progress: Progress = lambda *_: None,
    checkpoints: Checkpoints | None = None,
) -> Calibrated:
    """Return the model quantized with the best (or the named) method, and its accuracy.

    labels: classes of `samples`, used when no held_out set is given. budget: keep as many nodes
    float as it needs, and no more. explain: measure the sensitivity of every node in any case.
    improve: also try equalized channels and corrected biases; see `fit`.
    progress: called as (stage, rows done, rows in all). checkpoints: to go on after a break.
    Raises UsageError for an unknown method or too few samples, InputError for samples that do not
    fit the model, CalibrationError for values that are not finite or labels that do not match,
    GraphError for a model that cannot be quantized.
    """
    if method != AUTO and method not in METHODS:
        raise UsageError(f"unknown method {method!r}; one of {AUTO}, {', '.join(METHODS)}")
    model = prepared(model)
    reader = reader_for(model, batch)
    ranges, selection = _split(reader, samples)
    judged = _judged(reader, selection, held_out, labels)
    best = fit(
        model,
        ranges,
        selection,
        methods=tuple(METHODS) if method == AUTO else (method,),
        keep_float=keep_float,
        improve=improve,
        progress=progress,
        checkpoints=checkpoints,
    )
    macs = macs_by_node(model, next(iter(ranges)))
    sensitivities: dict[str, float] = {}
    placement = best.placement
    is_kept = budget is None or _excess(budget, model, best, judged)(placement, judged.rows) <= 0
    if explain or not is_kept:
        sensitivities = sensitivity(
            best.model,
            best.placement,
            best.amax,
            itertools.islice(selection, SENSITIVITY_BATCHES),
            tick=lambda done, total: progress("sensitivity", done, total),
        )
    if budget is not None and not is_kept:
        placement = _within(budget, model, best, sensitivities, judged, progress)
    tensorrt, ort = (best.quantized(form, placement) for form in FORMS)
    shares = {"tensorrt": int8_mac_percent(tensorrt, macs), "ort": integer_mac_percent(ort, macs)}
    cost = predicted_cost(model, {node.name for node in placement.quantized}, macs)
    judge_form = functools.partial(
        judge, model, judged=judged, placement=placement, progress=progress
    )
    return Calibrated(
        tensorrt=Quantized(
            model=tensorrt,
            accuracy=judge_form(tensorrt, int8_mac_percent=shares["tensorrt"], exact=True),
        ),
        ort=Quantized(
            model=ort, accuracy=judge_form(ort, int8_mac_percent=shares["ort"], exact=False)
        ),
        method=best.method,
        samples=ranges.rows,
        amax=best.amax,
        sqnr_db={name: round(score, 2) for name, score in best.sqnr_db.items()},
        gains_db=best.gains_db,
        cost=cost,
        kept_float=placement.kept_float,
        sensitivity_db={name: round(db, 2) for name, db in sensitivities.items()},
        worst=_worst(best, sensitivities),
    )


def _worst(best: Fit, sensitivities: Mapping[str, float]) -> tuple[LayerView, ...]:
    nodes = [node for node in best.placement.quantized if node.name in sensitivities]
    nodes.sort(key=lambda node: sensitivities[node.name])
    views = []
    for node in nodes[:WORST_LAYERS]:
        seen = best.ranges[node.activation]
        edges = np.linspace(0, seen.counts.size, VIEW_BINS, endpoint=False).astype(int)
        counts = np.add.reduceat(seen.counts, edges)
        views.append(
            LayerView(
                node=node.name,
                tensor=node.activation,
                sqnr_db=sensitivities[node.name],
                counts=tuple(int(count) for count in counts),
                amax=seen.amax,
                clip=best.amax[node.activation],
            )
        )
    return tuple(views)


def _within(
    budget: Budget,
    model: onnx.ModelProto,
    best: Fit,
    sensitivities: Mapping[str, float],
    judged: Judged,
    progress: Progress,
) -> Placement:
    """Return the placement with as few float nodes as the budget needs, in both int8 forms."""
    measure = _excess(budget, model, best, judged)
    tries = itertools.count(1)

    def excess(names: Sequence[str], rows: int) -> float:
        tried = without(best.placement, names, REASON, best.model.graph)
        progress("budget", min(next(tries), BUDGET_TRIES), BUDGET_TRIES)
        return measure(tried, rows)

    nodes = (node.name for node in best.placement.quantized)
    names = sorted(nodes, key=lambda name: sensitivities[name])
    kept = list(search(names, lambda some: excess(some, SEARCH_ROWS)))
    # The search looked at a few rows; all of them decide.
    for name in [name for name in names if name not in kept]:
        if excess(kept, judged.rows) <= 0:
            return without(best.placement, kept, REASON, best.model.graph)
        kept.append(name)
    raise GateError(
        "no choice of float nodes keeps the accuracy budget on all held-out samples; widen "
        "--budget, or give more samples"
    )


def _excess(
    budget: Budget, model: onnx.ModelProto, best: Fit, judged: Judged
) -> Callable[[Placement, int], float]:
    """Return by how much a placement exceeds the budget on the first rows, in the worse form."""
    if budget.metric == "top1" and judged.labels is None:
        raise UsageError("--budget top1 needs labels of the held-out samples; see --labels")
    score = score_from_name(budget.metric) if ":" in budget.metric else None

    def excess(placement: Placement, rows: int) -> float:
        few = Judged(part=judged.part.first(rows), labels=judged.labels)
        worst = -math.inf
        for form in FORMS:
            quantized = best.quantized(form, placement)
            accuracy = judge(
                model, quantized, few, placement=placement, int8_mac_percent=0.0,
                exact=form == "tensorrt", progress=lambda *_: None,
            )  # fmt: skip
            value = None
            if score is not None:
                value = mean_score(score, model, quantized, few.part, judged.labels)
            worst = max(worst, budget.excess(accuracy, value))
        return worst

    return excess


def _split(reader: Reader, samples: Samples) -> tuple[Part, Part]:
    """Return the part for the ranges and the part for the choice of method."""
    chosen = max(reader.smallest, int(samples.count * SELECTION_SHARE))
    split = samples.count - chosen
    if split < reader.smallest:
        raise UsageError(
            f"{samples.count} samples are too few: {2 * reader.smallest} at least, "
            f"{ADVISED_SAMPLES} are advised"
        )
    return reader.part(samples, 0, split), reader.part(samples, split, samples.count)


def _judged(
    reader: Reader, selection: Part, held_out: HeldOut | None, labels: Labels | None
) -> Judged:
    samples = selection.samples if held_out is None else held_out.samples
    classes = labels if held_out is None else held_out.labels
    if classes is not None and len(classes) != samples.count:
        raise CalibrationError(f"{len(classes)} labels for {samples.count} samples; give one each")
    if held_out is not None:
        return Judged(part=reader.part(samples, 0, samples.count), labels=classes)
    return Judged(part=selection, labels=None if classes is None else classes[selection.start :])


def ranges_of_all(
    model: onnx.ModelProto, samples: Samples, *, method: str, batch: int = 16, progress: Progress
) -> dict[str, float]:
    """Return the clipping range of every float tensor, as INT8 without Q/DQ needs them."""
    model = prepared(model)
    part = _split(reader_for(model, batch), samples)[0]
    seen = observe(model, float_tensors(model, part), part, progress)
    return {name: METHODS[method](one) for name, one in seen.items() if one.has_range}
