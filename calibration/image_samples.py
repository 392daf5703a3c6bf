"""A folder of images as calibration samples, through the steps that the device will take."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from calibration.errors import CalibrationError
from calibration.parallel import in_order
from edge.errors import InputError, UsageError
from edge.files import read_capped, sha256_of
from edge.images import ImagePreprocessing, check_header, tensor_from_image
from edge.spec import AnyArray, Feeds, TensorSpec

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})
MAX_IMAGE_BYTES = 128 << 20
Result = TypeVar("Result")


class ImageSamples:
    """The images below a folder, in an order that mixes its classes and never changes.

    Raises UsageError for a folder without images, CalibrationError naming the file for one that is
    empty or no image at all; one that is damaged further in is found when its turn comes.
    """

    def __init__(self, folder: Path, steps: ImagePreprocessing, spec: TensorSpec) -> None:
        files = [path for path in images_below(folder) if path.is_file()]
        if not files:
            raise UsageError(f"no image below {folder}; {', '.join(sorted(SUFFIXES))} are read")
        self._folder = folder
        # By name alone the last fifth, which chooses the method, would be the last classes.
        self._files = sorted(files, key=self._shuffled)
        self._steps = steps
        self._spec = spec
        for path in self._files:
            _read(path, check_header)

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self._files)

    @property
    def sha256(self) -> str:
        """Digest over the digests of the files in order."""
        digest = hashlib.sha256()
        for path in self._files:
            digest.update(bytes.fromhex(sha256_of(path, follow_links=True)[0]))
        return digest.hexdigest()

    def batches(self, size: int, start: int, stop: int) -> Iterator[Feeds]:
        """Yield images start..stop in order; raises CalibrationError naming a damaged one."""
        files = self._files[start:stop]
        rows = in_order(self._row, files, os.cpu_count() or 1)
        for _ in range(0, len(files), size):
            batch = list(itertools.islice(rows, size))
            yield {self._spec.name: np.concatenate(batch)}

    def labels(self) -> npt.NDArray[np.int64] | None:
        """Return a class per image if each lies in the folder of its class, else None.

        Folders whose names are all numbers are those classes, others count in the order of their
        names, as torchvision's ImageFolder has it.
        """
        parts = [path.relative_to(self._folder).parts for path in self._files]
        names = sorted({part[0] for part in parts})
        if len(names) < 2 or any(len(part) < 2 for part in parts):
            return None
        numbers = [int(name) if name.isdecimal() else None for name in names]
        if None in numbers:
            numbers = list(range(len(names)))
        number_of = dict(zip(names, numbers, strict=True))
        return np.array([number_of[part[0]] for part in parts], np.int64)

    def _row(self, path: Path) -> AnyArray:
        return _read(path, lambda c: tensor_from_image(c, self._steps, self._spec.dtype))

    def _shuffled(self, path: Path) -> bytes:
        return hashlib.sha256(str(path.relative_to(self._folder)).encode()).digest()


def _read(path: Path, use: Callable[[bytes], Result]) -> Result:
    try:
        return use(read_capped(path, max_bytes=MAX_IMAGE_BYTES, follow_links=True))
    except InputError as error:
        raise CalibrationError(f"{path}: {error}; remove it or save it again") from error


def images_below(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder whose names say that they are images."""
    return (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
