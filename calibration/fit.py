"""From a float model to everything that its int8 forms are made of: ranges, method, corrections.

Two ways to lose less are tried, and each is kept only if the outputs come closer to those of the
float model on samples that did not make it: equalized channels (`equalize`), and corrected biases
(`bias`), for either form alone.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx

from calibration.bias import bias_corrected, mean_errors
from calibration.checkpoint import Checkpoints
from calibration.collect import observe
from calibration.equalize import MIGRATIONS, channel_ranges, equalized
from calibration.errors import CalibrationError
from calibration.judge import Progress, sqnr_by_method
from calibration.methods import METHODS
from calibration.observers import Observer
from calibration.ort_form import ort_activations, quantize_for_ort
from calibration.parts import Part
from calibration.placement import Placement, place, shared_ranges
from calibration.qdq import quantize
from edge.spec import AnyArray

DEAD = "input is always zero"
# What a change must bring to be kept, in dB of the outputs' SQNR.
SMALLEST_GAIN_DB = 0.1
# A method that fits whatever the tails of equalized channels look like.
TAILED = "percentile-99.999"
TRIED_ROWS = 96
CORRECTED_ROWS = 128
BATCHES = 16  # of the ranges' samples, for channel ranges and mean errors

Form = Callable[[onnx.ModelProto, Placement, Mapping[str, float]], onnx.ModelProto]
FORMS: Mapping[str, Form] = {"tensorrt": quantize, "ort": quantize_for_ort}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What the int8 forms of a model are made of.

    model: of the same function as the one that was asked for. amax: by the best method. sqnr_db: by
    method. errors: of the biases, by form; empty where the correction did not help. gains_db: by
    change that was kept.
    """

    model: onnx.ModelProto
    placement: Placement
    ranges: Mapping[str, Observer]
    amax: dict[str, float]
    method: str
    sqnr_db: dict[str, float]
    errors: Mapping[str, Mapping[str, AnyArray]] = field(default_factory=dict)
    gains_db: dict[str, float] = field(default_factory=dict)

    def quantized(self, form: str, placement: Placement | None = None) -> onnx.ModelProto:
        """Return one of FORMS, with this placement instead of the fit's own if given."""
        placement = placement or self.placement
        model, errors = self.model, self.errors.get(form)
        if errors:
            model = bias_corrected(model, placement, errors)
        return FORMS[form](model, placement, self.amax)


def fit(
    model: onnx.ModelProto,
    ranges: Part,
    selection: Part,
    *,
    methods: Sequence[str],
    keep_float: Sequence[str],
    improve: bool,
    progress: Progress,
    checkpoints: Checkpoints | None = None,
) -> Fit:
    """Return the best fit of a prepared model; improve: also try what is said above.

    checkpoints: for the passes over all samples.

    Raises UsageError for a keep_float pattern that matches nothing, GraphError for a model that
    cannot be quantized, CalibrationError if every activation is zero.
    """
    plain = functools.partial(_plain, checkpoints=checkpoints)
    best = plain(model, model, ranges, selection, methods, keep_float, progress)
    if not improve:
        return best
    rival_model = _equalized(model, best, ranges, selection, keep_float)
    if rival_model is not None:
        rival = plain(model, rival_model, ranges, selection, methods, keep_float, progress)
        gain = max(rival.sqnr_db.values()) - max(best.sqnr_db.values())
        if gain >= SMALLEST_GAIN_DB:
            best = replace(rival, gains_db={"equalized channels": round(gain, 2)})
    for form in FORMS:
        few = itertools.islice(ranges, BATCHES)
        found = mean_errors(best.model, best.quantized(form), best.placement, few)
        corrected = replace(best, errors={**best.errors, form: found})
        scores = sqnr_by_method(
            model,
            {
                "as it is": functools.partial(best.quantized, form),
                "corrected": functools.partial(corrected.quantized, form),
            },
            selection.first(CORRECTED_ROWS),
            progress,
            exact=form == "tensorrt",
        )
        gain = scores["corrected"] - scores["as it is"]
        if gain >= SMALLEST_GAIN_DB:
            gains = {**best.gains_db, f"corrected biases ({form})": round(gain, 2)}
            best = replace(corrected, gains_db=gains)
    return best


def _equalized(
    model: onnx.ModelProto, best: Fit, ranges: Part, selection: Part, keep_float: Sequence[str]
) -> onnx.ModelProto | None:
    """Return the model equalized as far as a few samples like it best; None if none gains."""
    few_ranges, few = ranges.first(TRIED_ROWS), selection.first(TRIED_ROWS // 2)
    methods = (best.method,) if best.method == TAILED else (best.method, TAILED)

    def score(candidate: onnx.ModelProto) -> float:
        tried = _plain(model, candidate, few_ranges, few, methods, keep_float, lambda *_: None)
        return max(tried.sqnr_db.values())

    channels = channel_ranges(model, best.placement, itertools.islice(ranges, BATCHES))
    scores = {}
    for migration in MIGRATIONS:
        candidate = equalized(model, best.placement, channels, migration)
        if candidate is None:
            return None
        scores[migration] = score(candidate), candidate
    highest, candidate = max(scores.values(), key=lambda pair: pair[0])
    return candidate if highest > score(model) else None


def _plain(
    reference: onnx.ModelProto,
    model: onnx.ModelProto,
    ranges_part: Part,
    selection: Part,
    methods: Sequence[str],
    keep_float: Sequence[str],
    progress: Progress,
    *,
    checkpoints: Checkpoints | None = None,
) -> Fit:
    placement = place(model, keep_float)
    tensors = dict.fromkeys((*placement.activations, *ort_activations(model, placement)))
    ranges = observe(model, tuple(tensors), ranges_part, progress, checkpoints=checkpoints)
    groups = shared_ranges(model.graph, tuple(tensors))
    tables = {name: _table(name, ranges, groups) for name in methods}
    placement = _without_dead(placement, ranges)
    rivals = {
        name: functools.partial(quantize, model, placement, amax) for name, amax in tables.items()
    }
    scores = sqnr_by_method(reference, rivals, selection, progress)
    best = max(scores, key=lambda name: scores[name])
    return Fit(
        model=model, placement=placement, ranges=ranges, amax=tables[best], method=best,
        sqnr_db=scores,
    )  # fmt: skip


def _table(
    method: str, ranges: Mapping[str, Observer], groups: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Return amax by tensor, the same within each group."""
    table = {
        tensor: METHODS[method](seen) if seen.has_range else 0.0 for tensor, seen in ranges.items()
    }
    for group in groups:
        table.update(dict.fromkeys(group, max(table[tensor] for tensor in group)))
    return table


def _without_dead(placement: Placement, ranges: Mapping[str, Observer]) -> Placement:
    """Keep nodes float whose input was zero on every sample: they have no range."""
    dead = {n.name: DEAD for n in placement.quantized if not ranges[n.activation].has_range}
    if len(dead) == len(placement.quantized):
        raise CalibrationError("every activation is zero on every sample; check the samples")
    return replace(
        placement,
        quantized=tuple(n for n in placement.quantized if n.name not in dead),
        kept_float={**placement.kept_float, **dead},
        skips=tuple(s for s in placement.skips if ranges[s.tensor].has_range),
    )
