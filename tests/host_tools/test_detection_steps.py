from __future__ import annotations

import json
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from calibration.model_file import save_model, set_facts
from edge.detections import Detection
from edge.errors import UsageError
from edge.images import ImagePreprocessing
from edge.manifest import Provenance
from host_tools.detection_steps import detection_from_flag, words_from_detection
from tests.agents import make_config, running_agent
from tests.detectors import PROFILE, SIDE, STEPS, detector_model, photo
from tests.host_tools.commands import invoke
from tests.models import model_from_nodes

LABELS = ("cat", "dog", "bird")


def detector(**outputs: tuple[int | str, ...]) -> onnx.ModelProto:
    """Return a model of images with outputs of these shapes; it is not run."""
    return model_from_nodes(
        [helper.make_node("Identity", ["x"], [name]) for name in outputs],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 64, 64])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))
            for name, shape in outputs.items()
        ],
    )


IMAGE = ImagePreprocessing(input="x", height=64, width=64, fit="letterbox")
YOLO = {"output0": ("batch", 7, 84)}


def read(text: str, model: onnx.ModelProto, labels: tuple[str, ...] | None = LABELS) -> Detection:
    return detection_from_flag(text, model, labels=labels, image=IMAGE)


def test_presets_find_their_outputs_by_shape() -> None:
    yolo = read("yolo", detector(**YOLO))
    assert (yolo.boxes, yolo.scores, yolo.transposed, yolo.form) == (
        "output0", "output0", True, "cxcywh",
    )  # fmt: skip
    whole = read("yolo-end2end", detector(output0=("batch", 300, 6)))
    assert (whole.numbered, whole.form, whole.iou_threshold) == (True, "xyxy", None)
    old = read("yolov5", detector(output=("batch", 252, 8)))
    assert (old.objectness, old.transposed) == (True, False)
    detr = read("detr", detector(logits=("batch", 100, 4), pred_boxes=("batch", 100, 4)))
    assert (detr.boxes, detr.scores, detr.iou_threshold) == ("logits", "pred_boxes", None)
    by_name = "detr,boxes=pred_boxes,scores=logits"  # three classes and none: as wide as boxes
    named = read(by_name, detector(logits=("batch", 100, 4), pred_boxes=("batch", 100, 4)))
    assert (named.boxes, named.scores) == ("pred_boxes", "logits")
    real = read("rtdetr", detector(logits=("batch", 9, 3), pred_boxes=("batch", 9, 4)))
    assert (real.boxes, real.scores, real.activation) == ("pred_boxes", "logits", "sigmoid")
    ssd = read("ssd", detector(scores=("batch", 9, 4), places=("batch", 9, 4)), LABELS)
    assert ssd.background == "first"


def test_changes_and_files_override() -> None:
    changed = read("yolo,score_threshold=0.4,iou_threshold=none,max_detections=7", detector(**YOLO))
    assert (changed.score_threshold, changed.iou_threshold, changed.max_detections) == (
        0.4,
        None,
        7,
    )
    assert "3 classes, scores above 0.4, whatever they overlap" in words_from_detection(changed)


def test_a_file_says_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    fields = {"transposed": True, "form": "xywh", "labels": ["a", "b", "c"], "iou_threshold": 0.6}
    path.write_text(json.dumps(fields))
    detection = read(str(path), detector(**YOLO), None)
    assert (detection.form, detection.labels) == ("xywh", ("a", "b", "c"))
    assert "overlapping by at most 0.6" in words_from_detection(detection)
    for content, said in (("{", "not a JSON"), ('{"colour": 1}', "'colour' is no field")):
        path.write_text(content)
        with pytest.raises(UsageError, match=said):
            read(str(path), detector(**YOLO))


def test_the_names_that_ultralytics_writes_are_read() -> None:
    model = detector(**YOLO)
    model.metadata_props.add(key="names", value="{0: 'person', 1: 'car', 2: 'traffic light'}")
    assert read("yolo", model, None).labels == ("person", "car", "traffic light")
    assert read("yolo", model).labels == LABELS
    for bad in ("{0: 'a'", "__import__('os')", "{1: 'a'}", "5", "(" * 10_000):
        model.metadata_props[0].value = bad
        with pytest.raises(UsageError, match="--class-names"):
            read("yolo", model, None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("yola", "neither one of yolo"),
        ("yolo,colour=1", "KEY=VALUE"),
        ("yolo,score_threshold=2", "score_threshold"),
        ("yolo,form=circle", "form"),
        ("yolo,boxes=z", "not 'z'"),
        ("yolov5", "values a box"),
        ("no.json", "no file"),
    ],
)
def test_what_does_not_fit_is_told(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read(text, detector(**YOLO))


def test_a_packed_detector_answers_with_boxes(tmp_path: Path) -> None:
    model = detector_model(3)
    facts = Provenance(source="tests", opset=17, exporter="tests", tools={})
    set_facts(model, PROFILE, facts, STEPS)
    save_model(model, tmp_path / "m.onnx")
    x = np.random.default_rng(0).uniform(size=(3, 3, SIDE, SIDE)).astype(np.float32)
    np.savez(tmp_path / "golden.npz", x=x)
    (tmp_path / "names.txt").write_text("\n".join(LABELS))
    (tmp_path / "boxes.json").write_text('{"unit": "fraction"}')
    words = ["pack", "m.onnx", "--golden", "golden.npz", "--detection", "boxes.json",
             "--class-names", "names.txt", "--out", "packed"]  # fmt: skip
    words = [w if w[0] == "-" or w == "pack" else str(tmp_path / w) for w in words]
    result = invoke(*words, "--name", "finder")
    assert result.exit_code == 0, result.output
    shown = invoke("inspect", tmp_path / "packed").output
    assert "boxes of 3 classes, scores above 0.25" in " ".join(shown.split())
    assert "takes images, answers with boxes" in " ".join(shown.split())
    config = make_config(tmp_path, bundle=tmp_path / "packed", allow_unsigned=True)
    content = photo([[0.2, 0.4, 0.6, 0.8, 0.0, 0.0, 1.0]], (SIDE, SIDE))
    with running_agent(config) as agent:
        answer = httpx.post(f"{agent.url}/predict/finder", content=content).json()
    ((found,),) = answer["detections"]
    assert (found["label"], found["score"]) == ("bird", 1.0)
    np.testing.assert_allclose(found["box"], np.array([0.2, 0.4, 0.6, 0.8]) * SIDE, atol=SIDE / 255)
