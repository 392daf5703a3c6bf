"""One way to name samples on the command line.

An .npz file, a folder of them, a text file, or package.module:function for any other data: the
function takes nothing and gives an iterator over batches, each a dict from input name to array.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from calibration.errors import CalibrationError
from calibration.samples import IteratedSamples, NpzSamples, open_samples
from edge.errors import UsageError
from edge.spec import Feeds, Profile, TensorSpec
from host_tools.errors import FOREIGN_ERRORS, root_cause
from host_tools.sources import function_at
from host_tools.text import TextSamples

TEXT_SUFFIXES = frozenset({".txt", ".text"})


def samples_at(
    path: Path,
    *,
    inputs: tuple[TensorSpec, ...],
    profile: Profile,
    tokenizer: Path | None,
) -> NpzSamples | TextSamples | IteratedSamples:
    """Return the samples at path for a model with these inputs.

    Raises UsageError if path is missing, or is text and no tokenizer is given.
    """
    if not path.exists() and _is_function(str(path)):
        return IteratedSamples(functools.partial(_batches, str(path), function_at(str(path))))
    if path.suffix not in TEXT_SUFFIXES:
        return open_samples(path)
    if not path.is_file():
        raise UsageError(f"no samples at {path}; give a text file with one sample a line")
    if tokenizer is None:
        raise UsageError(f"{path} is text: give --tokenizer, the model folder or tokenizer.json")
    return TextSamples(path, tokenizer, inputs, profile)


def _is_function(text: str) -> bool:
    module, colon, name = text.partition(":")
    parts = (*module.split("."), name)
    return bool(colon) and all(part.isidentifier() for part in parts)


def _batches(spec: str, function: Callable[[], Any]) -> Iterator[Feeds]:
    """Yield what a user's function gives, as arrays; raises CalibrationError where it fails."""
    number = 0
    try:
        for feeds in function():
            yield {name: np.asarray(values) for name, values in feeds.items()}
            number += 1
    except FOREIGN_ERRORS as error:
        raise CalibrationError(f"{spec} failed at batch {number}: {root_cause(error)}") from error
    if number == 0:
        raise CalibrationError(f"{spec} gave no batch; a dict from input name to array each")
