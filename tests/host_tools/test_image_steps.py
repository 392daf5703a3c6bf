"""What a preprocessor_config.json means is asked of transformers itself."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edge.errors import UsageError
from edge.images import tensor_from_image
from edge.spec import Profile, ShapeRange, TensorSpec
from host_tools.image_steps import image_steps, image_steps_beside, words_from_steps


def interface(*row: int) -> tuple[tuple[TensorSpec, ...], Profile]:
    shape = (1, *row)
    spec = TensorSpec(name="pixels", datatype="FP32", shape=("batch", *row))
    return (spec,), Profile(ranges={"pixels": ShapeRange(min=shape, opt=shape, max=(8, *row))})


def processors() -> dict[str, Any]:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
    from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    return {
        "vit": ViTImageProcessorPil(),
        "clip": CLIPImageProcessorPil(),
        "deit": DeiTImageProcessorPil(),
        "convnext": ConvNextImageProcessorPil(size={"shortest_edge": 224}, crop_pct=0.875),
        "convnext-384": ConvNextImageProcessorPil(size={"shortest_edge": 384}),
        "unnormalised": ViTImageProcessorPil(do_normalize=False, resample=3),
    }


@pytest.mark.parametrize(
    "name", ["vit", "clip", "deit", "convnext", "convnext-384", "unnormalised"]
)
@pytest.mark.parametrize("size", [(301, 403), (640, 221), (224, 224)])
def test_a_processor_of_transformers_gives_the_same_tensor(
    name: str, size: tuple[int, int], tmp_path: Path
) -> None:
    processor = processors()[name]
    (tmp_path / "preprocessor_config.json").write_text(processor.to_json_string())
    values = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    image = Image.fromarray(values)
    expected = processor(image, return_tensors="np")["pixel_values"]
    steps = image_steps(str(tmp_path), *interface(*expected.shape[1:]))
    content = io.BytesIO()
    image.save(content, "PNG")
    got = tensor_from_image(content.getvalue(), steps, np.dtype(np.float32))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-6)


def test_a_preset_takes_the_size_of_the_model_and_changes() -> None:
    steps = image_steps("imagenet,edge=232,resample=bicubic,mean=0/0/0", *interface(3, 224, 224))
    assert (steps.height, steps.width, steps.edge, steps.fit) == (224, 224, 232, "crop")
    assert (steps.resample, steps.mean, steps.std) == ("bicubic", (0, 0, 0), (0.229, 0.224, 0.225))
    assert image_steps("imagenet", *interface(3, 224, 224)).edge == 256
    assert image_steps("yolo", *interface(640, 512, 3)).layout == "NHWC"
    grey = image_steps("inception", *interface(1, 28, 28))
    assert (grey.channels, grey.mean, grey.std) == ("L", (0.5,), (0.5,))
    assert words_from_steps(steps) == (
        "images: RGB, shorter side to 232, its centre of 224 x 224, bicubic, times 0.003922, "
        "mean 0/0/0, std 0.229/0.224/0.225, NCHW"
    )


@pytest.mark.parametrize(
    ("text", "row", "words"),
    [
        ("resnet", (3, 8, 8), "'resnet' is neither one of unit, imagenet"),
        ("unit,size=8", (3, 8, 8), "'size=8' is not KEY=VALUE with a key of channels, edge"),
        ("unit,pad=300", (3, 8, 8), "pad"),
        ("unit,resample=best", (3, 8, 8), "best"),
        ("unit,height=9", (3, 8, 8), r"rows of \[3, 9, 8\]"),
        ("bytes", (4, 8, 8), "no axis of 1 or 3 channels"),
        ("unit", (8,), "single input of rank 4"),
        ("missing.json", (3, 8, 8), "no file missing.json"),
    ],
)
def test_what_cannot_be_read_is_said(text: str, row: tuple[int, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        image_steps(text, *interface(*row))


@pytest.mark.parametrize(
    "config",
    [
        {"do_pad": True, "image_mean": [0], "image_std": [1]},
        {"do_resize": False},
        {"resample": 9},
        {"size": {"shortest_edge": 224}, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]},
        {"size": {"height": 224, "width": 224}},
        [1],
    ],
)
def test_a_processor_that_does_something_else_is_refused_not_guessed(
    config: Any, tmp_path: Path
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="cannot be read as image steps"):
        image_steps(str(tmp_path), *interface(3, 224, 224))
    assert image_steps_beside(tmp_path, *interface(3, 224, 224)) is None
