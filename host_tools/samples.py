"""One way to name samples on the command line: an .npz file, a folder of them, or a text file."""

from __future__ import annotations

from pathlib import Path

from calibration.samples import NpzSamples, open_samples
from edge.errors import UsageError
from edge.spec import Profile, TensorSpec
from host_tools.text import TextSamples

TEXT_SUFFIXES = frozenset({".txt", ".text"})


def samples_at(
    path: Path,
    *,
    inputs: tuple[TensorSpec, ...],
    profile: Profile,
    tokenizer: Path | None,
) -> NpzSamples | TextSamples:
    """Return the samples at path for a model with these inputs.

    Raises UsageError if path is missing, or is text and no tokenizer is given.
    """
    if path.suffix not in TEXT_SUFFIXES:
        return open_samples(path)
    if not path.is_file():
        raise UsageError(f"no samples at {path}; give a text file with one sample a line")
    if tokenizer is None:
        raise UsageError(f"{path} is text: give --tokenizer, the model folder or tokenizer.json")
    return TextSamples(path, tokenizer, inputs, profile)
