"""A detector that finds the boxes that are written into a photo, and such photos."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image

from edge import manifest as m
from edge.detections import Detection
from edge.images import ImagePreprocessing
from edge.spec import Profile, ShapeRange, TensorSpec
from tests.bundles import affine_parts, golden_tensors
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


def detector_parts(labels: tuple[str, ...]) -> tuple[m.Manifest, dict[str, bytes]]:
    """Return the Manifest of a bundle that serves "detector" 1, and its files by name."""
    columns = 4 + len(labels)
    count = SIDE // columns
    model = detector_model(len(labels))
    manifest, _ = affine_parts()
    files = {"detector/fp32.onnx": model.SerializeToString()}
    x = np.random.default_rng(0).uniform(size=(1, 3, SIDE, SIDE)).astype(np.float32)
    y = x[:, 0, SIDE // 2, : count * columns].reshape(1, count, columns)
    served = replace(
        manifest.models[0],
        name="detector",
        inputs=(TensorSpec(name="x", datatype="FP32", shape=("batch", 3, SIDE, SIDE)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=("batch", count, columns)),),
        profile=PROFILE,
        variants=(
            m.Variant(id="fp32", backend="ort", precision="fp32", files=("detector/fp32.onnx",)),
        ),
        preferences=(m.Preference(backend="ort", variant="fp32", why="it is the only one"),),
        golden=m.Golden(
            cases=(
                m.GoldenCase(
                    inputs=golden_tensors("detector/in", {"x": x}, files),
                    outputs=golden_tensors("detector/out", {"y": y}, files),
                ),
            ),
            tolerance={"fp32": 1e-5},
        ),
        image=STEPS,
        detection=Detection(
            boxes="y", scores="y", unit="fraction", labels=labels, iou_threshold=0.5
        ),
    )
    return replace(manifest, models=(served,)), files
