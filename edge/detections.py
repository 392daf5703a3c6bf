"""From the outputs of a detector to boxes in the pixels of the image that was sent.

Steps, in order: the best class of every box, the score threshold, the best MAX_CANDIDATES, back to
the image, suppression of what overlaps a better box of its class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from edge.images import ImagePreprocessing, Placement
from edge.spec import AnyArray, TensorSpec

MAX_LABELS = 100_000
MAX_DETECTIONS = 1000
# Suppression compares the boxes that are kept with all others: without a bound, a low threshold
# would make one request of thousands of boxes cost seconds.
MAX_CANDIDATES = 2048

Form = Literal["xyxy", "cxcywh", "xywh"]
Unit = Literal["pixels", "fraction"]
Activation = Literal["none", "sigmoid", "softmax"]
Background = Literal["none", "first", "last"]
Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """What the outputs of a detector mean.

    boxes, scores: outputs of shape (batch, n, 4) and (batch, n, classes); the same output, if a
    row is the box followed by the scores. transposed: whether n is the last axis instead. form:
    corners, or centre or corner with width and height; unit: pixels of what the model sees, or
    fractions of its sides.
    numbered: whether a score and the number of its class stand for the scores of all classes.
    objectness: whether a score behind the box counts for all classes and multiplies theirs.
    activation: what makes scores of the values. background: a class that is none.
    score_threshold: scores above it count. iou_threshold: a box that overlaps a better one of its
    class by more is dropped; None keeps all. max_detections: of an image. labels: by class number,
    background left out.
    """

    boxes: str
    scores: str
    transposed: bool = False
    form: Form = "xyxy"
    unit: Unit = "pixels"
    numbered: bool = False
    objectness: bool = False
    activation: Activation = "none"
    background: Background = "none"
    score_threshold: Share = 0.25
    iou_threshold: Share | None = 0.45
    max_detections: Annotated[int, msgspec.Meta(ge=1, le=MAX_DETECTIONS)] = 100
    labels: tuple[str, ...]

    @property
    def score_columns(self) -> int:
        """How many values a box has behind, or beside, its four sides."""
        if self.numbered:
            return 2
        return len(self.labels) + (self.background != "none") + self.objectness


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One box, as left, top, right and bottom in pixels of the upright image."""

    label: str
    number: int
    score: float
    box: tuple[float, float, float, float]


def problem_with(
    detection: Detection, image: ImagePreprocessing | None, outputs: tuple[TensorSpec, ...]
) -> str | None:
    """Return why a model with these outputs detects no such boxes, in words; None if it may."""
    if image is None:
        return "boxes need image steps: they are given in pixels of an image"
    if not 0 < len(detection.labels) <= MAX_LABELS:
        return f"{len(detection.labels)} labels"
    if detection.numbered and (detection.objectness or detection.background != "none"):
        return "a score with the number of its class has no objectness and no background"
    columns = {detection.boxes: 4, detection.scores: detection.score_columns}
    if detection.boxes == detection.scores:
        columns = {detection.boxes: 4 + detection.score_columns}
    specs = {spec.name: spec for spec in outputs}
    for name, count in columns.items():
        spec = specs.get(name)
        if spec is None:
            return f"the model gives {list(specs)}, not {name!r}"
        if len(spec.shape) != 3 or spec.datatype not in {"FP32", "FP16"}:
            return f"output {name!r} is {spec.wire_shape} of {spec.datatype}, not rows of boxes"
        if spec.shape[1 if detection.transposed else 2] != count:
            return f"output {name!r} is {spec.wire_shape}; {count} values a box are expected"
    return None


def detections(
    outputs: Mapping[str, AnyArray],
    detection: Detection,
    image: ImagePreprocessing,
    placements: tuple[Placement, ...],
) -> list[list[Found]]:
    """Return the boxes of every image, the best first.

    placements: where each image lies in its row. Boxes that are not finite, or have no area
    inside the image, are dropped.
    """
    boxes, values = _columns(outputs, detection)
    return [
        _found(b, v, detection, image, placement)
        for b, v, placement in zip(boxes, values, placements, strict=True)
    ]


def kept_of_boxes(
    boxes: Doubles, classes: npt.NDArray[np.intp], *, iou_threshold: float, most: int
) -> npt.NDArray[np.intp]:
    """Return the numbers of the boxes that no better one of their class overlaps by more.

    boxes: shape (n, 4), corners, the best first. classes: shape (n,). Overlap is intersection over
    union; an empty box overlaps nothing.
    """
    area = _area(boxes)
    waiting = np.arange(len(boxes))
    kept: list[int] = []
    while len(waiting) and len(kept) < most:
        best, waiting = waiting[0], waiting[1:]
        kept.append(int(best))
        others = boxes[waiting]
        corners = np.concatenate(
            [
                np.maximum(others[:, :2], boxes[best, :2]),
                np.minimum(others[:, 2:], boxes[best, 2:]),
            ],
            axis=1,
        )
        shared = _area(corners)
        union = area[waiting] + area[best] - shared
        overlaps = (shared > iou_threshold * union) & (classes[waiting] == classes[best])
        waiting = waiting[~overlaps]
    return np.array(kept, np.intp)


def _columns(outputs: Mapping[str, AnyArray], detection: Detection) -> tuple[AnyArray, AnyArray]:
    """Return boxes (batch, 4, n) and values (batch, columns, n) as views."""

    def columns(name: str) -> AnyArray:
        return outputs[name] if detection.transposed else outputs[name].transpose(0, 2, 1)

    if detection.boxes != detection.scores:
        return columns(detection.boxes), columns(detection.scores)
    both = columns(detection.boxes)
    return both[:, :4], both[:, 4:]


def _found(
    boxes: AnyArray,
    values: AnyArray,
    detection: Detection,
    image: ImagePreprocessing,
    placement: Placement,
) -> list[Found]:
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is left out
        values, scores = _scores(values, detection)
    chosen = np.flatnonzero((scores > detection.score_threshold) & np.isfinite(boxes).all(axis=0))
    if detection.numbered:
        numbers = values[0, chosen]
        chosen = chosen[(numbers >= 0) & (numbers < len(detection.labels))]
    chosen = chosen[np.argsort(-scores[chosen], kind="stable")[:MAX_CANDIDATES]]
    corners = _corners(boxes[:, chosen].T.astype(np.float64), detection, image)
    inside = _in_image(corners, placement)
    has_area = _area(inside) > 0
    chosen, corners, inside = chosen[has_area], corners[has_area], inside[has_area]
    if detection.numbered:
        classes = values[0, chosen].astype(np.intp)
    else:
        classes = values[:, chosen].argmax(axis=0)
    kept = np.arange(len(chosen))[: detection.max_detections]
    if detection.iou_threshold is not None:
        kept = kept_of_boxes(
            corners,
            classes,
            iou_threshold=detection.iou_threshold,
            most=detection.max_detections,
        )
    return [
        Found(
            label=detection.labels[classes[number]],
            number=int(classes[number]),
            score=float(scores[chosen[number]]),
            box=tuple(inside[number].tolist()),
        )
        for number in kept
    ]


def _scores(values: AnyArray, detection: Detection) -> tuple[Floats, Floats]:
    """Return the values of the classes (classes, n), background left out, and the best scores.

    Of numbered scores, the values are the numbers (1, n). A class is as good as its value: the
    sigmoid, which keeps the order, is taken of the best alone.
    """
    values = values.astype(np.float32, copy=False)
    if detection.objectness:
        share, values = values[0], values[1:]
    if detection.activation == "softmax" and not detection.numbered:
        values = np.exp(values - values.max(axis=0))
        values /= values.sum(axis=0)
    if detection.background == "first":
        values = values[1:]
    elif detection.background == "last":
        values = values[:-1]
    if detection.numbered:
        scores, values = values[0], values[1:]
    else:
        scores = values.max(axis=0)
    if detection.activation == "sigmoid":
        scores = 1 / (1 + np.exp(-scores))
    if detection.objectness:
        scores = scores * (1 / (1 + np.exp(-share)) if detection.activation == "sigmoid" else share)
    return values, scores


def _corners(boxes: Doubles, detection: Detection, image: ImagePreprocessing) -> Doubles:
    """Return boxes (n, 4) as corners in pixels of what the model sees."""
    first, second = boxes[:, :2], boxes[:, 2:]
    if detection.form == "cxcywh":
        first, second = first - second / 2, first + second / 2
    elif detection.form == "xywh":
        second = first + second
    corners = np.concatenate([first, second], axis=1)
    if detection.unit == "fraction":
        corners *= [image.width, image.height] * 2
    return corners


def _in_image(corners: Doubles, placement: Placement) -> Doubles:
    offset = np.array([placement.left, placement.top] * 2)
    scale = np.array([placement.x_scale, placement.y_scale] * 2)
    limits = np.array([placement.width, placement.height] * 2)
    clipped: Doubles = np.clip((corners - offset) / scale, 0.0, limits)
    return clipped


def _area(corners: Doubles) -> Doubles:
    sides = np.maximum(corners[:, 2:] - corners[:, :2], 0.0)
    area: Doubles = sides[:, 0] * sides[:, 1]
    return area
