"""Samples to calibrate on, read in batches: memory does not grow with their number."""

from __future__ import annotations

import contextlib
import hashlib
import math
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt

from calibration.errors import CalibrationError
from edge.errors import UsageError, first_line
from edge.files import CHUNK_BYTES, sha256_of
from edge.spec import AnyArray, Feeds
from edge.tensor_bytes import bytes_from_tensor, tensor_from_strings

LABELS = "labels"
MAX_LABELS = 10_000_000


class Samples(Protocol):
    """A finite, ordered set of model inputs that can be read again and again."""

    @property
    def count(self) -> int:
        """Number of samples (rows over all batches)."""

    @property
    def sha256(self) -> str:
        """Digest of the content, for the CalibrationTable."""

    def batches(self, size: int, start: int, stop: int) -> Iterator[Feeds]:
        """Yield rows start..stop in order, at most `size` rows at a time."""


class NpzSamples:
    """Arrays of one or several .npz files: one array per input, axis 0 counts the samples.

    Rows are streamed out of the archive; shapes may differ from file to file, never inside one.
    An array named "labels" is not an input. Text, an array of dtype str or bytes, is read as BYTES.
    """

    def __init__(self, paths: tuple[Path, ...]) -> None:
        self._paths = paths
        self._counts = [_count(path) for path in paths]

    @property
    def count(self) -> int:
        """Number of samples over all files."""
        return sum(self._counts)

    @property
    def sha256(self) -> str:
        """Digest over the digests of the files in order."""
        digest = hashlib.sha256()
        for path in self._paths:
            digest.update(bytes.fromhex(sha256_of(path, follow_links=True)[0]))
        return digest.hexdigest()

    def batches(self, size: int, start: int, stop: int) -> Iterator[Feeds]:
        """Yield rows start..stop in order; a batch never spans two files."""
        first = 0
        for path, count in zip(self._paths, self._counts, strict=True):
            low, high = max(start - first, 0), min(stop - first, count)
            if low < high:
                yield from _file_batches(path, size, low, high)
            first += count

    def labels(self) -> npt.NDArray[np.int64] | None:
        """Return the arrays named "labels" of all files, or None if a file has none."""
        parts = []
        for path in self._paths:
            with _damage(path), zipfile.ZipFile(path) as archive:
                if f"{LABELS}.npy" not in archive.namelist():
                    return None
                rows = _rows(archive, path, LABELS, MAX_LABELS, 0, MAX_LABELS)
                parts.append(next(rows, np.zeros(0, np.int64)))
        return _as_labels(np.concatenate(parts), self._paths[0])


class IteratedSamples:
    """Batches that a function of the caller makes: read_again() gives a new iterator each time.

    Every pass must give the same samples. Batches may have any number of rows; the first pass
    counts them and takes their digest.
    """

    def __init__(self, read_again: Callable[[], Iterable[Feeds]]) -> None:
        self._read_again = read_again
        self._facts: tuple[int, str] | None = None

    @property
    def count(self) -> int:
        """Number of samples over all batches."""
        return self._known()[0]

    @property
    def sha256(self) -> str:
        """Digest over names, shapes, types and bytes of all batches in order."""
        return self._known()[1]

    def batches(self, size: int, start: int, stop: int) -> Iterator[Feeds]:
        """Yield rows start..stop in order; a batch never spans two of the caller's."""
        first = 0
        for feeds in self._read_again():
            count = _rows_in(feeds)
            low, high = max(start - first, 0), min(stop - first, count)
            for begin in range(low, high, size):
                yield {name: rows[begin : min(begin + size, high)] for name, rows in feeds.items()}
            first += count
            if first >= stop:
                return

    def _known(self) -> tuple[int, str]:
        if self._facts is None:
            count, digest = 0, hashlib.sha256()
            for feeds in self._read_again():
                count += _rows_in(feeds)
                for name in sorted(feeds):
                    rows = np.ascontiguousarray(feeds[name])
                    digest.update(f"{name} {rows.dtype.str} {rows.shape}".encode())
                    digest.update(bytes_from_tensor(rows) if rows.dtype.hasobject else rows.data)
            self._facts = count, digest.hexdigest()
        return self._facts


def _rows_in(feeds: Feeds) -> int:
    counts = {name: len(rows) if rows.ndim else None for name, rows in feeds.items()}
    if not counts or None in counts.values() or len(set(counts.values())) != 1:
        raise CalibrationError(
            f"a batch must map every input to an array with one row a sample; it has {counts} rows"
        )
    return int(next(iter(counts.values())) or 0)


def open_samples(path: Path) -> NpzSamples:
    """Return the samples in an .npz file, or in a folder of them in name order.

    Raises UsageError if there is nothing there, CalibrationError if a file is unreadable.
    """
    if path.is_dir():
        files = tuple(sorted(path.glob("*.npz")))
        if not files:
            raise UsageError(f"no .npz file in {path}; save the inputs with numpy.savez, by name")
        return NpzSamples(files)
    if not path.is_file():
        raise UsageError(f"no samples at {path}; give an .npz file or a folder of them")
    return NpzSamples((path,))


def read_labels(path: Path) -> npt.NDArray[np.int64]:
    """Return class numbers from a .npy file or a text file with one number a line."""
    if not path.is_file():
        raise UsageError(f"no labels at {path}; give a .npy or .txt file of class numbers")
    try:
        if path.suffix == ".npy":
            values: AnyArray = np.load(path, allow_pickle=False)
        else:
            values = np.array([int(line) for line in path.read_text().split()], np.int64)
    except (ValueError, EOFError, OSError, tokenize.TokenError) as error:
        reason = first_line(error)
        raise CalibrationError(f"{path} does not hold class numbers: {reason}") from error
    return _as_labels(values, path)


def _as_labels(values: AnyArray, path: Path) -> npt.NDArray[np.int64]:
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
        raise CalibrationError(
            f"{path}: labels have shape {list(values.shape)} and dtype {values.dtype}; "
            "one integer per sample is needed"
        )
    return values.astype(np.int64)


def _count(path: Path) -> int:
    counts: dict[str, int] = {}
    with _damage(path), zipfile.ZipFile(path) as archive:
        for name in _array_names(archive, path):
            with archive.open(f"{name}.npy") as file:
                shape, _ = _header(file, path, name)
            if not shape:
                raise CalibrationError(f"{path}: array {name!r} has no axis of samples")
            counts[name] = shape[0]
    if len(set(counts.values())) != 1:
        raise CalibrationError(f"{path}: arrays differ in their number of samples: {counts}")
    return next(iter(counts.values()))


def _file_batches(path: Path, size: int, start: int, stop: int) -> Iterator[Feeds]:
    with _damage(path), zipfile.ZipFile(path) as archive:
        names = [name for name in _array_names(archive, path) if name != LABELS]
        columns = [_rows(archive, path, name, size, start, stop) for name in names]
        for parts in zip(*columns, strict=True):
            yield dict(zip(names, parts, strict=True))


def _rows(
    archive: zipfile.ZipFile, path: Path, name: str, size: int, start: int, stop: int
) -> Iterator[AnyArray]:
    """Yield rows start..stop of one array, decompressing no more than a batch at a time."""
    with archive.open(f"{name}.npy") as file:
        shape, dtype = _header(file, path, name)
        row_bytes = math.prod(shape[1:]) * dtype.itemsize
        _skip(file, start * row_bytes)
        for first in range(start, min(stop, shape[0]), size):
            rows = min(size, min(stop, shape[0]) - first)
            content = file.read(rows * row_bytes)
            if len(content) != rows * row_bytes:
                raise CalibrationError(f"{path}: array {name!r} ends early; write the file again")
            yield tensor_from_strings(np.frombuffer(content, dtype).reshape(rows, *shape[1:]))


def _skip(file: IO[bytes], count: int) -> None:
    """Move forward in small steps: ZipExtFile.seek reads up to 16 MB at once."""
    while count > 0:
        count -= len(file.read(min(count, CHUNK_BYTES))) or count


def _header(file: IO[bytes], path: Path, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(file)
    except (ValueError, EOFError, tokenize.TokenError) as error:
        reason = first_line(error)
        raise CalibrationError(f"{path}: array {name!r} is not a numpy array: {reason}") from error
    if dtype.hasobject:
        raise CalibrationError(
            f"{path}: array {name!r} holds Python objects; save numbers, or "
            "text as a numpy array of dtype str"
        )
    if fortran and len(shape) > 1:
        raise CalibrationError(
            f"{path}: array {name!r} is in Fortran order; save numpy.ascontiguousarray of it"
        )
    return shape, dtype


def _array_names(archive: zipfile.ZipFile, path: Path) -> list[str]:
    names = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
    if not set(names) - {LABELS}:
        raise CalibrationError(f"{path} holds no array; save the inputs with numpy.savez, by name")
    return names


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turn what zipfile raises for damaged, encrypted or exotic archives into one error."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, OSError) as error:
        raise CalibrationError(
            f"{path} is not a readable .npz file: {first_line(error)}; save it again with "
            "numpy.savez"
        ) from error
