"""One way to name samples on the command line.

An .npz file, a folder of them or of images, a text file, or package.module:function for any other
data: the function takes nothing and gives an iterator over batches, each a dict from input name to
array.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from calibration.errors import CalibrationError
from calibration.image_samples import ImageSamples, images_below
from calibration.model_file import image_from_model, profile_from_model, specs_from_model
from calibration.processing import processing_from_model
from calibration.samples import IteratedSamples, NpzSamples, open_samples
from edge.errors import UsageError
from edge.images import ImagePreprocessing
from edge.spec import Feeds
from edge.tensor_bytes import tensor_from_strings
from host_tools.errors import FOREIGN_ERRORS, root_cause
from host_tools.sources import function_at
from host_tools.text import TextSamples

AnySamples = NpzSamples | TextSamples | ImageSamples | IteratedSamples
TEXT_SUFFIXES = frozenset({".txt", ".text"})


def samples_at(path: Path, model: onnx.ModelProto, *, tokenizer: Path | None) -> AnySamples:
    """Return the samples at path for a model.

    Raises UsageError if path is missing, is text and no tokenizer is given, or holds images and
    the model does not say what becomes of them.
    """
    if not path.exists() and _is_function(str(path)):
        return IteratedSamples(functools.partial(_batches, str(path), function_at(str(path))))
    if path.is_dir() and next(path.glob("*.npz"), None) is None and any(images_below(path)):
        return ImageSamples(path, _steps(path, model), specs_from_model(model)[0][0])
    if path.suffix not in TEXT_SUFFIXES:
        return open_samples(path)
    if not path.is_file():
        raise UsageError(f"no samples at {path}; give a text file with one sample a line")
    if tokenizer is None:
        raise UsageError(f"{path} is text: give --tokenizer, the model folder or tokenizer.json")
    inputs, profile = specs_from_model(model)[0], profile_from_model(model)
    return TextSamples(path, tokenizer, inputs, profile, processing_from_model(model).text)


def _steps(path: Path, model: onnx.ModelProto) -> ImagePreprocessing:
    steps = image_from_model(model)
    if steps is None:
        raise UsageError(
            f"{path} holds images, and the model does not say how one becomes its input; export it "
            "again with --image, an .onnx file too: edge-kit export MODEL.onnx --image imagenet"
        )
    return steps


def _is_function(text: str) -> bool:
    module, colon, name = text.partition(":")
    parts = (*module.split("."), name)
    return bool(colon) and all(part.isidentifier() for part in parts)


def _batches(spec: str, function: Callable[[], Any]) -> Iterator[Feeds]:
    """Yield what a user's function gives, as arrays; raises CalibrationError where it fails."""
    number = 0
    try:
        for feeds in function():
            yield {name: tensor_from_strings(np.asarray(values)) for name, values in feeds.items()}
            number += 1
    except FOREIGN_ERRORS as error:
        raise CalibrationError(f"{spec} failed at batch {number}: {root_cause(error)}") from error
    if number == 0:
        raise CalibrationError(f"{spec} gave no batch; a dict from input name to array each")
