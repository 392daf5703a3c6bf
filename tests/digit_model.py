"""A least-squares reader of the handwritten digits that ship with scikit-learn, as a bundle."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper
from PIL import Image
from sklearn.datasets import load_digits

from edge.classes import Classes
from edge.images import ImagePreprocessing
from tests.bundles import Parts, parts_of
from tests.models import model_from_nodes

TRAINED_ON = 1_200
SIDE = 8
STEPS = ImagePreprocessing(input="x", height=SIDE, width=SIDE, channels="L")


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A scan that the reader has not been fitted to: a PNG, and the digit that was written."""

    png: bytes
    digit: int


def scans() -> list[Scan]:
    """Return the scans that were held back."""
    pixels, digits = _scans()
    return [
        Scan(png=_png(image), digit=int(digit))
        for image, digit in zip(pixels[TRAINED_ON:], digits[TRAINED_ON:], strict=True)
    ]


def digit_parts() -> Parts:
    """Return the Manifest of a bundle that serves "digits" 1, and its files by name."""
    pixels, digits = _scans()
    x = pixels[:TRAINED_ON].reshape(TRAINED_ON, -1) / np.float32(255)
    weights = np.linalg.lstsq(
        np.hstack([x, np.ones((TRAINED_ON, 1), np.float32)]),
        np.eye(10, dtype=np.float32)[digits[:TRAINED_ON]],
        rcond=None,
    )[0].astype(np.float32)
    case = x[:1].reshape(1, 1, SIDE, SIDE)
    return parts_of(
        "digits",
        _model(weights[:-1], weights[-1]),
        {"x": case},
        {"y": x[:1] @ weights[:-1] + weights[-1]},
        image=STEPS,
        classes=Classes(output="y", labels=tuple("0123456789"), softmax=True, top=3),
    )


def _model(weights: npt.NDArray[np.float32], bias: npt.NDArray[np.float32]) -> onnx.ModelProto:
    return model_from_nodes(
        [
            helper.make_node("Flatten", ["x"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weights", "bias"], ["y"]),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])],
        {"weights": weights, "bias": bias},
    )


def _scans() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    digits = load_digits()
    return (digits.images * (255 / 16)).astype(np.uint8), digits.target


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()
