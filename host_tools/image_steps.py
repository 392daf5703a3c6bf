"""`--image`: how images become the input of a model, in the words that people have for it.

A preset with changes ("imagenet,edge=232,resample=bicubic"), or the preprocessor_config.json that
Hugging Face puts beside a vision model, alone or in its folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from edge.errors import UsageError
from edge.files import read_capped
from edge.images import ImagePreprocessing, problem_with
from edge.spec import Profile, TensorSpec
from host_tools.presets import fields_from_preset

CONFIG_NAME = "preprocessor_config.json"
MAX_CONFIG_BYTES = 1 << 20
LARGEST_CROPPED = 384  # from here on ConvNeXt's processor stretches, as it was trained
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CLIP = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}
# Fields of ImagePreprocessing; "margin" is the crop's share of the shorter side before it.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "unit": {},
    "imagenet": {"fit": "crop", "margin": 0.875, **IMAGENET},
    "inception": HALF,
    "clip": {"fit": "crop", "margin": 1.0, "resample": "bicubic", **CLIP},
    "yolo": {"fit": "letterbox"},
    "bytes": {"scale": 1.0},
}
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_TUPLES = {"mean", "std"}


def image_steps(text: str, inputs: tuple[TensorSpec, ...], profile: Profile) -> ImagePreprocessing:
    """Return the steps that text names, for the one image input of a model.

    Raises UsageError for a text that cannot be read and for steps that do not fit the model.
    """
    layout, sides, channels = _interface(inputs, profile)
    path = Path(text)
    if path.suffix == ".json" or path.is_dir():
        fields = _from_processor(path / CONFIG_NAME if path.is_dir() else path)
    else:
        fields = _from_preset(text)
    facts: dict[str, Any] = {
        "input": inputs[0].name,
        "layout": layout,
        "height": sides[0],
        "width": sides[1],
        "channels": "L" if channels == 1 else "RGB",
    } | fields
    margin = facts.pop("margin", None)
    if channels == 1:  # presets are for three
        facts |= {key: facts[key][:1] for key in _TUPLES if len(facts.get(key, ())) == 3}
    try:
        steps = msgspec.convert(facts, ImagePreprocessing, strict=False)
        if margin is not None and steps.edge is None:
            steps = replace(steps, edge=int(max(steps.height, steps.width) / margin))
    except msgspec.ValidationError as error:
        raise UsageError(f"--image {text}: {error}") from error
    problem = problem_with(steps, inputs, profile)
    if problem is not None:
        raise UsageError(f"--image {text}: {problem}")
    return steps


def image_steps_beside(
    folder: Path, inputs: tuple[TensorSpec, ...], profile: Profile
) -> ImagePreprocessing | None:
    """Return what a Hugging Face folder says about images; None if it says nothing that fits."""
    if not (folder / CONFIG_NAME).is_file():
        return None
    try:
        return image_steps(str(folder), inputs, profile)
    except UsageError:
        return None


def words_from_steps(steps: ImagePreprocessing) -> str:
    """Return what happens to an image, in a line."""
    size = f"{steps.height} x {steps.width}"
    how = {
        "stretch": f"stretched to {size}"
        if steps.edge is None
        else f"stretched to {steps.edge} x {steps.edge}, its centre of {size}",
        "crop": f"shorter side to {steps.edge}, its centre of {size}",
        "letterbox": f"fitted into {size}, padded with {steps.pad}",
    }[steps.fit]
    numbers = f"times {steps.scale:.4g}"
    if steps.mean or steps.std:
        numbers += f", mean {_listed(steps.mean)}, std {_listed(steps.std)}"
    return f"images: {steps.channels}, {how}, {steps.resample}, {numbers}, {steps.layout}"


def _listed(values: tuple[float, ...]) -> str:
    return "/".join(f"{value:g}" for value in values) or "none"


def _interface(
    inputs: tuple[TensorSpec, ...], profile: Profile
) -> tuple[str, tuple[int, int], int]:
    """Return (layout, (height, width), channels) of the only input, at its most frequent shape."""
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        raise UsageError(
            f"--image: the model takes {[(s.name, s.wire_shape) for s in inputs]}; images need a "
            "single input of rank 4"
        )
    _, *row = profile.ranges[inputs[0].name].opt
    if row[0] in {1, 3}:
        return "NCHW", (row[1], row[2]), row[0]
    if row[2] in {1, 3}:
        return "NHWC", (row[0], row[1]), row[2]
    raise UsageError(f"--image: rows of {row} have no axis of 1 or 3 channels, first or last")


def _from_preset(text: str) -> dict[str, Any]:
    known = set(ImagePreprocessing.__dataclass_fields__) - {"input"}
    return fields_from_preset(
        "--image", text, PRESETS, known=known, or_file=CONFIG_NAME, read=_value
    )


def _value(key: str, text: str) -> str | tuple[str, ...]:
    return tuple(text.split("/")) if key in _TUPLES else text


def _from_processor(path: Path) -> dict[str, Any]:
    """Return the fields that a preprocessor_config.json stands for."""
    if not path.is_file():
        raise UsageError(f"--image: no file {path}; give a {CONFIG_NAME}, its folder, or a preset")
    try:
        content = read_capped(path, max_bytes=MAX_CONFIG_BYTES, follow_links=True)
        given = msgspec.json.decode(content, type=dict[str, Any])
        return _converted(given)
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"--image {path}: it cannot be read as image steps: {error!r}") from error


def _converted(given: Mapping[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {"resample": _RESAMPLE[given.get("resample", 2)]}
    offset = given.get("rescale_offset", False)
    if not given.get("do_resize", True) or offset or given.get("do_pad", False):
        raise ValueError("images without resizing, with padding or an offset are not supported")
    size, crop = given.get("size", 224), given.get("crop_size")
    edge = size if isinstance(size, int) else size.get("shortest_edge")
    if given.get("do_center_crop") and crop is not None:
        fields |= {"fit": "crop", "edge": edge} | _sides(crop)
        if edge is None:
            height, width = _sides(size).values()
            if height != width:
                raise ValueError("a crop after stretching to no square is not supported")
            fields |= {"fit": "stretch", "edge": height}
    elif given.get("crop_pct") is not None and edge is not None:
        fields |= _sides(edge)
        if edge < LARGEST_CROPPED:
            fields |= {"fit": "crop", "edge": int(edge / given["crop_pct"])}
    elif isinstance(size, Mapping) and edge is not None:
        raise ValueError("images of any width are not supported; a crop would fix it")
    else:
        fields |= _sides(size)
    fields["scale"] = given.get("rescale_factor", 1 / 255) if given.get("do_rescale", True) else 1.0
    if given.get("do_normalize", True):
        fields |= {"mean": tuple(given["image_mean"]), "std": tuple(given["image_std"])}
    return fields


def _sides(size: int | Mapping[str, int]) -> dict[str, int]:
    if isinstance(size, int):
        return {"height": size, "width": size}
    return {"height": size["height"], "width": size["width"]}
