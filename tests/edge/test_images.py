from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from edge.errors import InputError
from edge.images import MAX_PIXELS, ImagePreprocessing, problem_with, tensor_from_image
from edge.spec import Datatype, Profile, ShapeRange, TensorSpec

FP32 = np.dtype(np.float32)
STEPS = ImagePreprocessing(input="x", height=32, width=32)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def model(
    datatype: Datatype = "FP32", row: tuple[int, ...] = (3, 32, 32)
) -> tuple[tuple[TensorSpec, ...], Profile]:
    low, high = (1, *row), (8, *row)
    specs = (TensorSpec(name="x", datatype=datatype, shape=("batch", *row)),)
    return specs, Profile(ranges={"x": ShapeRange(min=low, opt=low, max=high)})


def test_bytes_are_scaled_and_normalised_per_channel() -> None:
    image = noise(32, 32)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.1, 0.3)
    got = tensor_from_image(encoded(image), replace(STEPS, mean=mean, std=std), FP32)
    pixels = np.asarray(image).astype(np.float64)
    for channel in range(3):
        expected = (pixels[:, :, channel] / 255 - mean[channel]) / std[channel]
        np.testing.assert_allclose(got[0, channel], expected, rtol=1e-5, atol=1e-6)
    assert got.dtype == np.float32
    assert got.flags.c_contiguous


def test_layout_channels_and_datatype_are_as_declared() -> None:
    image = noise(32, 32)
    pixels = np.asarray(image)
    raw = replace(STEPS, scale=1.0)
    nhwc = tensor_from_image(encoded(image), replace(raw, layout="NHWC"), np.dtype(np.uint8))
    np.testing.assert_array_equal(nhwc[0], pixels)
    bgr = tensor_from_image(encoded(image), replace(raw, channels="BGR"), FP32)
    np.testing.assert_array_equal(bgr[0, 0], pixels[:, :, 2])
    half = tensor_from_image(encoded(image), raw, np.dtype(np.float16))
    np.testing.assert_array_equal(half[0, 1], pixels[:, :, 1])
    grey = tensor_from_image(encoded(image), replace(raw, channels="L"), FP32)
    assert grey.shape == (1, 1, 32, 32)
    luma = pixels @ np.array([0.299, 0.587, 0.114])  # ITU-R 601-2, as Pillow documents
    assert np.abs(grey[0, 0] - luma).max() <= 1.0


def test_a_letterbox_keeps_the_ratio_and_pads_around() -> None:
    red = Image.new("RGB", (100, 50), (255, 0, 0))
    steps = replace(STEPS, fit="letterbox", pad=114, scale=1.0)
    got = tensor_from_image(encoded(red), steps, FP32)[0]
    np.testing.assert_array_equal(got[:, :8], 114.0)
    np.testing.assert_array_equal(got[:, 24:], 114.0)
    np.testing.assert_array_equal(got[0, 8:24], 255.0)
    np.testing.assert_array_equal(got[1, 8:24], 0.0)


@pytest.mark.parametrize("size", [(64, 128), (128, 64)])
def test_a_crop_takes_the_centre(size: tuple[int, int]) -> None:
    image = noise(*size)
    steps = replace(STEPS, fit="crop", edge=64, scale=1.0)
    got = tensor_from_image(encoded(image), steps, FP32)[0]
    left, top = size[0] // 2 - 16, size[1] // 2 - 16
    expected = np.asarray(image)[top : top + 32, left : left + 32].transpose(2, 0, 1)
    np.testing.assert_array_equal(got, expected)


def test_a_photo_is_turned_upright() -> None:
    upright = noise(32, 32)
    lying = upright.rotate(90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 270 degrees counter-clockwise to see it upright
    got = tensor_from_image(encoded(lying, "PNG", exif=exif), STEPS, FP32)
    np.testing.assert_array_equal(got, tensor_from_image(encoded(upright), STEPS, FP32))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_damaged_files_are_refused_and_nothing_else_happens(kind: str) -> None:
    good = encoded(noise(48, 40), kind)
    rng = np.random.default_rng(0)
    damaged = [good[:cut] for cut in np.linspace(0, len(good) - 1, 60).astype(int)]
    for _ in range(300):
        content = bytearray(good)
        for place in rng.integers(0, min(len(good), 400), 3):
            content[place] = rng.integers(0, 256)
        damaged.append(bytes(content))
    refused = 0
    for content in damaged:
        try:
            assert tensor_from_image(content, STEPS, FP32).shape == (1, 3, 32, 32)
        except InputError:
            refused += 1
    assert refused >= 40


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that claims a size and holds nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"")
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(10_000, 5_001), (100_000, 100_000)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_that_claims_too_many_pixels_is_refused_by_its_header(
    size: tuple[int, int],
) -> None:
    with pytest.raises(InputError, match=f"more than {MAX_PIXELS}"):
        tensor_from_image(png_header(*size), STEPS, FP32)


def test_a_long_thin_image_cannot_grow_by_its_crop() -> None:
    thin = encoded(Image.new("RGB", (20_000, 1)))
    with pytest.raises(InputError, match="too long and narrow"):
        tensor_from_image(thin, replace(STEPS, fit="crop", edge=256), FP32)


def test_other_formats_are_not_even_tried() -> None:
    with pytest.raises(InputError, match="not a readable image"):
        tensor_from_image(encoded(noise(8, 8), "GIF"), STEPS, FP32)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input": "y"}, "images give 'y' alone"),
        ({"height": 64}, r"rows of \[3, 64, 32\]"),
        ({"channels": "L"}, r"rows of \[1, 32, 32\]"),
        ({"layout": "NHWC"}, r"rows of \[32, 32, 3\]"),
        ({"mean": (0.5,)}, "mean has 1 values for 3 channels"),
        ({"std": (1.0, 0.0, 1.0)}, "std not zero"),
        ({"scale": float("nan")}, "finite"),
        ({"fit": "crop"}, "needs an edge"),
        ({"fit": "letterbox", "edge": 40}, "has none"),
        ({"fit": "crop", "edge": 31}, "edge 31 is smaller"),
    ],
)
def test_steps_that_cannot_feed_the_model_are_told_apart(
    changes: dict[str, object], words: str
) -> None:
    import re

    assert problem_with(STEPS, *model()) is None
    problem = problem_with(replace(STEPS, **changes), *model())  # type: ignore[arg-type]
    assert problem is not None
    assert re.search(words, problem)


def test_byte_inputs_take_bytes_only_and_integers_no_image() -> None:
    assert problem_with(replace(STEPS, scale=1.0), *model("UINT8")) is None
    assert "bytes as they are" in str(problem_with(STEPS, *model("UINT8")))
    assert "INT64" in str(problem_with(STEPS, *model("INT64")))
    assert "rows of" in str(problem_with(STEPS, *model(row=(3, 32))))
