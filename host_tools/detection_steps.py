"""`--detection`: what the boxes of a detector mean, in the words that people have for it.

A preset with changes ("yolo,score_threshold=0.4"), or a .json file with the fields of `Detection`.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import onnx

from calibration.model_file import specs_from_model
from edge.detections import Detection, problem_with
from edge.errors import UsageError
from edge.files import read_capped
from edge.images import ImagePreprocessing
from edge.spec import TensorSpec
from host_tools.presets import fields_from_preset

MAX_FILE_BYTES = 4 << 20
LABELS_KEY = "names"  # where Ultralytics' export writes a dict from class number to name
# Fields of Detection.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "yolo": {"transposed": True, "form": "cxcywh", "iou_threshold": 0.7},
    "yolo-end2end": {"numbered": True, "iou_threshold": None},
    "yolov5": {"form": "cxcywh", "objectness": True},
    "detr": {
        "form": "cxcywh",
        "unit": "fraction",
        "activation": "softmax",
        "background": "last",
        "score_threshold": 0.5,
        "iou_threshold": None,
    },
    "rtdetr": {
        "form": "cxcywh",
        "unit": "fraction",
        "activation": "sigmoid",
        "score_threshold": 0.5,
        "iou_threshold": None,
    },
    "ssd": {"unit": "fraction", "background": "first"},
}


def detection_from_flag(
    text: str,
    model: onnx.ModelProto,
    *,
    labels: tuple[str, ...] | None,
    image: ImagePreprocessing | None,
) -> Detection:
    """Return what text says of a model's outputs.

    labels: None takes those in the file or in the model's own metadata.
    Raises UsageError for a text that cannot be read, or does not fit the model.
    """
    outputs = specs_from_model(model)[1]
    fields = _from_file(Path(text)) if text.endswith(".json") else _from_preset(text)
    given = labels or fields.get("labels") or _labels_from_metadata(model)
    if not given:
        raise UsageError(f"--detection {text}: the classes have no names; give --class-names")
    try:
        detection = msgspec.convert(
            {**_places(outputs), **fields, "labels": given}, Detection, strict=False
        )
    except msgspec.ValidationError as error:
        raise UsageError(f"--detection {text}: {error}") from error
    problem = problem_with(detection, image, outputs)
    if problem is not None:
        raise UsageError(f"--detection {text}: {problem}")
    return detection


def words_from_detection(detection: Detection) -> str:
    """Return what is answered, in a line."""
    overlap = (
        "whatever they overlap"
        if detection.iou_threshold is None
        else f"overlapping by at most {detection.iou_threshold:g}"
    )
    return (
        f"boxes of {len(detection.labels)} classes, scores above {detection.score_threshold:g}, "
        f"{overlap}, at most {detection.max_detections}"
    )


def _places(outputs: tuple[TensorSpec, ...]) -> dict[str, str]:
    """Return which output holds boxes and which scores, as far as their shapes tell."""
    rows = [spec for spec in outputs if len(spec.shape) == 3]
    boxes = next((spec for spec in rows if 4 in spec.shape[1:]), None)
    if boxes is None or len(rows) == 1:
        return {} if not rows else {"boxes": rows[0].name, "scores": rows[0].name}
    return {"boxes": boxes.name, "scores": next(s.name for s in rows if s is not boxes)}


def _from_preset(text: str) -> dict[str, Any]:
    known = set(Detection.__dataclass_fields__) - {"labels"}
    return fields_from_preset(
        "--detection", text, PRESETS, known=known, or_file=".json file", read=_value
    )


def _value(key: str, text: str) -> str | None:
    return None if key == "iou_threshold" and text == "none" else text


def _from_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UsageError(f"--detection: no file {path}")
    try:
        content = read_capped(path, max_bytes=MAX_FILE_BYTES, follow_links=True)
        fields = msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UsageError(f"--detection {path}: not a JSON object: {error}") from error
    unknown = sorted(set(fields) - set(Detection.__dataclass_fields__))
    if unknown:
        raise UsageError(f"--detection {path}: {unknown[0]!r} is no field of a detection")
    return fields


def _labels_from_metadata(model: onnx.ModelProto) -> tuple[str, ...] | None:
    text = next((p.value for p in model.metadata_props if p.key == LABELS_KEY), None)
    if text is None or len(text) > MAX_FILE_BYTES:
        return None
    try:
        names = ast.literal_eval(text)
        return tuple(str(names[number]) for number in range(len(names)))
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError):
        return None
