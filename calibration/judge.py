"""How far quantized models are from their parent, on samples that did not make them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from calibration.compare import Comparison
from calibration.errors import CalibrationError, GraphError
from calibration.parts import Part, row_count
from calibration.placement import HEAD, Placement
from calibration.runtime import Runner
from edge.manifest import Accuracy
from edge.spec import AnyArray, Feeds

Labels = npt.NDArray[np.int64]
Progress = Callable[[str, int, int], None]
KEPT_ANSWER_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One part of the samples, and the classes of its rows where they are known."""

    part: Part
    labels: Labels | None = None

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.part.rows


def sqnr_by_method(
    model: onnx.ModelProto,
    rivals: Mapping[str, Callable[[], onnx.ModelProto]],
    part: Part,
    progress: Progress,
    *,
    exact: bool = True,
) -> dict[str, float]:
    """Return the SQNR in dB per rival; the worst output counts. exact: see `Runner`.

    Rivals are built and opened one after another: memory does not grow with their number.
    """
    answers = _Answers(Runner(model))
    scores = {}
    for position, (name, build) in enumerate(rivals.items()):
        rival, compared, done = Runner(build(), exact=exact), _comparisons(answers.runner), 0
        for number, feeds in enumerate(part):
            wanted, got = answers.of(number, feeds), rival.run(feeds)
            rows = row_count(feeds)
            for output, comparison in _floats(compared, wanted).items():
                comparison.update(got[output], wanted[output], rows)
            done += rows
            progress("methods", position * part.rows + done, len(rivals) * part.rows)
        scores[name] = min(c.sqnr_db for c in compared.values() if c.rows)
    return scores


class _Answers:
    """A model's answers to the batches of a part, kept for the next rival while they are small."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self._kept: dict[int, dict[str, AnyArray]] = {}
        self._free = KEPT_ANSWER_BYTES

    def of(self, number: int, feeds: Feeds) -> dict[str, AnyArray]:
        """Return the outputs for batch `number`."""
        if number in self._kept:
            return self._kept[number]
        values = self.runner.run(feeds)
        size = sum(value.nbytes for value in values.values())
        if size <= self._free:
            self._free -= size
            self._kept[number] = values
        return values


def judge(
    model: onnx.ModelProto,
    quantized: onnx.ModelProto,
    judged: Judged,
    *,
    placement: Placement,
    int8_mac_percent: float,
    exact: bool,
    progress: Progress,
) -> Accuracy:
    """Return how the quantized model compares with the float model on every judged row.

    With labels, the first output must be (rows, classes). Without, the top class counts for a
    classifier: a model whose first output is (rows, two or more) and comes from a head.
    exact: see `runtime.Runner`.
    Raises CalibrationError for labels that do not fit and for outputs that are not finite,
    GraphError if the model has no float output that could be compared.
    """
    part, labels = judged.part, judged.labels
    float_runner, int8_runner = Runner(model), Runner(quantized, exact=exact)
    compared = _comparisons(float_runner)
    primary = float_runner.output_names[0]
    correct = {"fp32": 0, "int8": 0}
    is_classifier, done = HEAD in placement.kept_float.values(), 0
    for feeds in part:
        wanted, got, rows = float_runner.run(feeds), int8_runner.run(feeds), row_count(feeds)
        for name, comparison in _floats(compared, wanted).items():
            _require_finite(name, wanted[name], "float")
            _require_finite(name, got[name], "int8")
            comparison.update(got[name], wanted[name], rows)
        is_classifier = is_classifier and _has_classes(wanted[primary], rows)
        if labels is not None:
            truth = _truth(labels, done, wanted[primary], rows)
            correct["fp32"] += int((wanted[primary].argmax(axis=1) == truth).sum())
            correct["int8"] += int((got[primary].argmax(axis=1) == truth).sum())
        done += rows
        progress("gate", done, part.rows)
    if done == 0:
        raise CalibrationError(
            f"{part.rows} held-out samples are fewer than one batch of {part.reader.smallest}"
        )
    kept = [comparison for comparison in compared.values() if comparison.rows]

    def top1(key: str) -> float | None:
        return None if labels is None else 100.0 * correct[key] / done

    return Accuracy(
        samples=done,
        labelled=labels is not None,
        fp32_top1_percent=top1("fp32"),
        int8_top1_percent=top1("int8"),
        argmax_agreement_percent=compared[primary].agreement_percent if is_classifier else None,
        cosine_mean=min(c.cosine_mean for c in kept),
        cosine_min=min(c.cosine_min for c in kept),
        sqnr_db=min(c.sqnr_db for c in kept),
        int8_mac_percent=int8_mac_percent,
    )


def _comparisons(runner: Runner) -> dict[str, Comparison]:
    return {name: Comparison() for name in runner.output_names}


def _floats(
    compared: Mapping[str, Comparison], outputs: Mapping[str, AnyArray]
) -> dict[str, Comparison]:
    """Return the comparisons of float outputs: class numbers have no distance."""
    floats = {name: c for name, c in compared.items() if outputs[name].dtype.kind == "f"}
    if not floats:
        raise GraphError(
            "the model has no float output, so int8 cannot be compared with fp32; export it "
            "without its final ArgMax or Cast"
        )
    return floats


def _require_finite(name: str, values: AnyArray, kind: str) -> None:
    if not np.isfinite(values).all():
        raise CalibrationError(
            f"output {name!r} of the {kind} model is not finite on a held-out sample; check the "
            "sample, or keep the layers that overflow in float"
        )


def _has_classes(values: AnyArray, rows: int) -> bool:
    return values.ndim == 2 and len(values) == rows and values.shape[1] > 1


def _truth(labels: Labels, start: int, answers: AnyArray, rows: int) -> Labels:
    """Return the labels of one batch, checked against the answers they belong to."""
    if not _has_classes(answers, rows) or answers.dtype.kind != "f":
        raise CalibrationError(
            f"labels need a first output of shape (batch, classes) in float; it is "
            f"{list(answers.shape)} of {answers.dtype}; calibrate without --labels"
        )
    truth = labels[start : start + rows]
    wrong = np.flatnonzero((truth < 0) | (truth >= answers.shape[1]))
    if wrong.size:
        raise CalibrationError(
            f"label {truth[wrong[0]]} of held-out sample {start + int(wrong[0])} is not in "
            f"0..{answers.shape[1] - 1}, the classes of the model; number them from 0"
        )
    return truth
