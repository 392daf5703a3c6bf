"""Text files as calibration samples: one text a line, through the model's own tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from calibration.errors import CalibrationError
from edge.errors import BackendUnavailableError, UsageError
from edge.files import read_capped
from edge.spec import Feeds, Profile, TensorSpec
from edge.text import TextPreprocessing

IDS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"
MAX_TEXT_BYTES = 256 << 20


class TextSamples:
    """Lines of a UTF-8 file as token ids; every batch is padded to its longest line.

    how: the text steps of the model, None if it carries none. Longer lines are cut as a device cuts
    them, or else to what the profile allows, as a client has to cut them.
    """

    def __init__(
        self,
        path: Path,
        tokenizer: Path,
        inputs: tuple[TensorSpec, ...],
        profile: Profile,
        how: TextPreprocessing | None = None,
    ) -> None:
        names = {spec.name for spec in inputs}
        if IDS not in names or not names <= {IDS, MASK, TYPES}:
            raise UsageError(
                f"the model takes {sorted(names)}; text needs a model that takes {IDS} and at "
                f"most {MASK} and {TYPES}"
            )
        content = read_capped(path, max_bytes=MAX_TEXT_BYTES, follow_links=True)
        try:
            lines = [line.strip() for line in content.decode("utf-8").splitlines()]
        except UnicodeDecodeError as error:
            raise CalibrationError(f"{path} is not UTF-8 text: {error}") from error
        self._lines = [line for line in lines if line]
        if not self._lines:
            raise CalibrationError(f"{path} holds no text; one sample a line is needed")
        self._sha256 = hashlib.sha256(content).hexdigest()
        self.profile = profile
        self._inputs = inputs
        self._pad = 0 if how is None else how.pad
        self._tokenizer = _load_tokenizer(tokenizer)
        longest = profile.ranges[IDS].max[1] if how is None else how.max_tokens
        end = "left" if how is not None and how.truncation == "start" else "right"
        self._tokenizer.enable_truncation(longest, direction=end)

    @property
    def count(self) -> int:
        """Number of lines that are not empty."""
        return len(self._lines)

    @property
    def sha256(self) -> str:
        """Digest of the file."""
        return self._sha256

    @property
    def vocabulary_size(self) -> int:
        """Number of different token ids that the tokenizer can give."""
        return int(self._tokenizer.get_vocab_size())

    def batches(self, size: int, start: int, stop: int) -> Iterator[Feeds]:
        """Yield lines start..stop as padded batches of int arrays of shape (rows, tokens)."""
        for first in range(start, min(stop, self.count), size):
            chunk = self._lines[first : min(first + size, stop)]
            rows = [encoding.ids for encoding in self._tokenizer.encode_batch(chunk)]
            width = max(self.profile.ranges[IDS].min[1], *(len(row) for row in rows))
            ids = np.full((len(rows), width), self._pad, np.int64)
            mask = np.zeros_like(ids)
            for i, row in enumerate(rows):
                ids[i, : len(row)] = row
                mask[i, : len(row)] = 1
            arrays = {IDS: ids, MASK: mask, TYPES: np.zeros_like(ids)}
            yield {spec.name: arrays[spec.name].astype(spec.dtype) for spec in self._inputs}


def tokenizer_file(path: Path) -> Path:
    """Return the tokenizer.json that path is, or that lies in it; raises UsageError."""
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise UsageError(f"no tokenizer at {file}; give the model folder or its tokenizer.json")
    return file


def _load_tokenizer(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise BackendUnavailableError(
            f"tokenizers is not importable: {error}; pip install 'edge-kit[host]'"
        ) from error
    file = tokenizer_file(path)
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exception
        raise UsageError(f"{file} is not a tokenizer: {error}") from error
    tokenizer.no_padding()
    return tokenizer
