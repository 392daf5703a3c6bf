"""A detector that finds the boxes that are written into a photo, and such photos."""

from __future__ import annotations

import io

import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image

from edge.detections import Detection
from edge.images import ImagePreprocessing
from edge.spec import Profile, ShapeRange
from tests.bundles import Parts, parts_of
from tests.models import model_from_nodes

SIDE = 16
STEPS = ImagePreprocessing(input="x", height=SIDE, width=SIDE, fit="letterbox", pad=0)
PROFILE = Profile(
    ranges={"x": ShapeRange(min=(1, 3, SIDE, SIDE), opt=(1, 3, SIDE, SIDE), max=(4, 3, SIDE, SIDE))}
)


def detector_model(classes: int) -> onnx.ModelProto:
    """Return y, rows of four sides and scores: the red of the pixels in the middle row of x."""
    columns = 4 + classes
    count = SIDE // columns
    return model_from_nodes(
        [
            helper.make_node("Slice", ["x", "from", "to", "axes"], ["row"]),
            helper.make_node("Reshape", ["row", "shape"], ["y"]),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", count, columns])],
        {
            "from": np.array([0, SIDE // 2, 0]),
            "to": np.array([1, SIDE // 2 + 1, count * columns]),
            "axes": np.array([1, 2, 3]),
            "shape": np.array([0, count, columns]),
        },
    )


def photo(boxes: list[list[float]], size: tuple[int, int]) -> bytes:
    """Return a grey photo in whose middle row the detector reads these boxes.

    boxes: rows of values in 0..1, which become bytes. size: width and height, at most SIDE.
    """
    values = np.zeros((size[1], size[0], 3), np.uint8)
    flat = np.array(boxes).ravel()
    values[size[1] // 2, : len(flat), 0] = np.round(flat * 255)
    content = io.BytesIO()
    Image.fromarray(values).save(content, "PNG")
    return content.getvalue()


def detector_parts(labels: tuple[str, ...]) -> Parts:
    """Return the Manifest of a bundle that serves "detector" 1, and its files by name."""
    columns = 4 + len(labels)
    count = SIDE // columns
    x = np.random.default_rng(0).uniform(size=(1, 3, SIDE, SIDE)).astype(np.float32)
    y = x[:, 0, SIDE // 2, : count * columns].reshape(1, count, columns)
    return parts_of(
        "detector",
        detector_model(len(labels)),
        {"x": x},
        {"y": y},
        profile=PROFILE,
        image=STEPS,
        detection=Detection(
            boxes="y", scores="y", unit="fraction", labels=labels, iou_threshold=0.5
        ),
    )
