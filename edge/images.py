"""From an encoded image to the tensor that a model takes: the same steps on host and device.

Calibration reads a folder of images through this module and the agent reads requests through it,
so what was measured is what is served. Steps, in order: decode, turn upright (EXIF), convert to
`channels`, resize by `fit`, crop or pad, scale, normalise, lay out.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from edge.errors import BackendUnavailableError, InputError, first_line
from edge.spec import AnyArray, Profile, TensorSpec

Fit = Literal["stretch", "crop", "letterbox"]
Resample = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Channels = Literal["RGB", "BGR", "L"]
Layout = Literal["NCHW", "NHWC"]

MAX_SIDE = 16_384
MAX_PIXELS = 50_000_000  # decoded, 3 bytes each; a phone's camera has 12 to 50 million
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
# What Pillow raises for files that are damaged, found by flipping their bytes.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError, TypeError)

Side = Annotated[int, msgspec.Meta(ge=1, le=MAX_SIDE)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePreprocessing:
    """How an image becomes the input of this name.

    height, width: what the model sees. fit: "stretch" resizes to exactly that, or to a square of
    `edge` and takes the centre; "crop" resizes the shorter side to `edge` and takes the centre;
    "letterbox" resizes to fit inside and pads with `pad`, a byte. resample: the filter, as Pillow
    names it.
    scale, mean, std: the tensor is (byte * scale - mean) / std, per channel in the order of
    `channels`; without mean and std nothing is subtracted or divided. layout: of the tensor.
    """

    input: str
    height: Side
    width: Side
    fit: Fit = "stretch"
    edge: Side | None = None
    pad: Annotated[int, msgspec.Meta(ge=0, le=255)] = 114
    resample: Resample = "bilinear"
    channels: Channels = "RGB"
    scale: float = 1 / 255
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    layout: Layout = "NCHW"


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where an image lies in what the model sees: x there = left + x_scale * x of the image.

    left, top: pixels that were added (letterbox) or, if negative, cut off (crop). width, height:
    of the upright image.
    """

    width: int
    height: int
    x_scale: float
    y_scale: float
    left: int
    top: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedImage:
    """The tensor of one image, see `tensor_from_image`, and where the image lies in it."""

    tensor: AnyArray
    placement: Placement


def problem_with(
    how: ImagePreprocessing, inputs: tuple[TensorSpec, ...], profile: Profile
) -> str | None:
    """Return why these steps cannot feed a model with these inputs, in words; None if they can."""
    spec = next((spec for spec in inputs if spec.name == how.input), None)
    if spec is None or len(inputs) > 1:
        return f"the model takes {[s.name for s in inputs]}, images give {how.input!r} alone"
    count = len(how.channels)
    row = (count, how.height, how.width) if how.layout == "NCHW" else (how.height, how.width, count)
    bounds = profile.ranges.get(spec.name)
    smallest, largest = ((), ()) if bounds is None else (bounds.min[1:], bounds.max[1:])
    if len(smallest) != 3 or not all(
        low <= size <= high for low, size, high in zip(smallest, row, largest, strict=True)
    ):
        return f"images give rows of {list(row)}, input {spec.name!r} takes {spec.wire_shape[1:]}"
    if spec.datatype not in {"FP32", "FP16", "UINT8"}:
        return f"input {spec.name!r} is {spec.datatype}; images give FP32, FP16 or UINT8"
    if spec.datatype == "UINT8" and (how.scale != 1.0 or how.mean or how.std):
        return f"input {spec.name!r} is UINT8, which takes bytes as they are: scale 1, no mean, std"
    for name, values in (("mean", how.mean), ("std", how.std)):
        if len(values) not in {0, count}:
            return f"{name} has {len(values)} values for {count} channels"
    if not all(np.isfinite([how.scale, *how.mean, *how.std])) or 0.0 in how.std:
        return "scale, mean and std must be finite, and std not zero"
    if (how.fit == "crop" and how.edge is None) or (
        how.fit == "letterbox" and how.edge is not None
    ):
        return "fit 'crop' needs an edge, 'letterbox' has none"
    if how.edge is not None and how.edge < max(how.height, how.width):
        return f"edge {how.edge} is smaller than the crop of {how.height} x {how.width}"
    return None


def tensor_from_image(content: bytes, how: ImagePreprocessing, dtype: np.dtype[Any]) -> AnyArray:
    """Return the tensor of one encoded image, of shape (1, C, H, W) or (1, H, W, C).

    Raises InputError for what is not a readable image of FORMATS with at most MAX_PIXELS, and
    BackendUnavailableError without Pillow.
    """
    return placed_from_image(content, how, dtype).tensor


def placed_from_image(content: bytes, how: ImagePreprocessing, dtype: np.dtype[Any]) -> PlacedImage:
    """Return the tensor of one encoded image and the place of the image in it.

    Raises what `tensor_from_image` raises.
    """
    bytes_of_pixels, placement = _fitted(_decoded(content, how.channels), how)
    if how.channels == "BGR":
        bytes_of_pixels = bytes_of_pixels[:, :, ::-1]
    if dtype == np.uint8:
        values: AnyArray = bytes_of_pixels
    else:
        values = bytes_of_pixels.astype(np.float32) * np.float32(how.scale)
        if how.mean:
            values -= np.array(how.mean, np.float32)
        if how.std:
            values /= np.array(how.std, np.float32)
    if how.layout == "NCHW":
        values = values.transpose(2, 0, 1)
    return PlacedImage(tensor=np.ascontiguousarray(values[None], dtype), placement=placement)


def check_header(content: bytes) -> None:
    """Raise InputError for what cannot be an image, by its first bytes: pixels are not decoded."""
    _opened(content).close()


def _opened(content: bytes) -> Any:
    image_module = _pillow()[0]
    try:
        image = image_module.open(io.BytesIO(content), formats=FORMATS)
    except image_module.DecompressionBombError as error:
        raise InputError(
            f"the image has more than {MAX_PIXELS} pixels; send a smaller one"
        ) from error
    except _DAMAGE as error:
        raise InputError(
            f"not a readable image ({', '.join(FORMATS)}), or a damaged one"
        ) from error
    if image.width * image.height > MAX_PIXELS:
        raise InputError(
            f"the image has {image.width} x {image.height} pixels, more than {MAX_PIXELS}; send a "
            "smaller one"
        )
    return image


def _decoded(content: bytes, channels: Channels) -> Any:
    image, operations = _opened(content), _pillow()[1]
    try:
        upright = operations.exif_transpose(image)
        return upright.convert("L" if channels == "L" else "RGB")
    except _DAMAGE as error:
        raise InputError(f"the image is damaged: {first_line(error)}") from error


def _fitted(image: Any, how: ImagePreprocessing) -> tuple[npt.NDArray[np.uint8], Placement]:
    """Return the pixels as (height, width, channels), and where the image lies in them."""
    image_module = _pillow()[0]
    filters = image_module.Resampling[how.resample.upper()]
    if how.fit != "letterbox":
        size = _resized(image.size, how)
        left, top = (size[0] - how.width) // 2, (size[1] - how.height) // 2
        fitted = image.resize(size, filters)
        fitted = fitted.crop((left, top, left + how.width, top + how.height))
        left, top = -left, -top
    else:
        ratio = min(how.width / image.width, how.height / image.height)
        size = max(1, round(image.width * ratio)), max(1, round(image.height * ratio))
        left, top = (how.width - size[0]) // 2, (how.height - size[1]) // 2
        padding = (how.pad,) * len(how.channels)
        fitted = image_module.new(image.mode, (how.width, how.height), padding)
        fitted.paste(image.resize(size, filters), (left, top))
    placement = Placement(
        width=image.width,
        height=image.height,
        x_scale=size[0] / image.width,
        y_scale=size[1] / image.height,
        left=left,
        top=top,
    )
    pixels = np.asarray(fitted)
    return pixels if pixels.ndim == 3 else pixels[:, :, None], placement


def _resized(size: tuple[int, int], how: ImagePreprocessing) -> tuple[int, int]:
    """Return (width, height) before the crop; where the ratio is kept, the longer side is cut."""
    (width, height), edge = size, how.edge
    if how.fit == "stretch" or edge is None:
        return (how.width, how.height) if edge is None else (edge, edge)
    longer = int(edge * max(size) / min(size))
    if longer * edge > MAX_PIXELS:
        raise InputError(f"the image is {width} x {height}, too long and narrow; cut it first")
    return (edge, longer) if width <= height else (longer, edge)


def _pillow() -> tuple[Any, Any]:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise BackendUnavailableError(
            f"Pillow is not importable: {error}; pip install pillow, which images need"
        ) from error
    return Image, ImageOps
