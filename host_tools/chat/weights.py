"""Weights of a Hugging Face folder: safetensors, one file or shards, read a few rows at a time.

A file begins with the length of its header, eight bytes little-endian, then the header as JSON
({name: {dtype, shape, data_offsets}}), then the values.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from edge.errors import UsageError
from edge.files import open_regular, read_capped, safe_join, storage_errors
from host_tools.errors import ExportError

FloatArray = npt.NDArray[np.float32]

MAX_HEADER_BYTES = 100 << 20
MAX_INDEX_BYTES = 100 << 20
CHUNK_BYTES = 1 << 20  # of float32 at a time: what is made of it stays in the cache of a core
# BF16 is the upper half of a float32, which numpy has no type for.
DTYPES: dict[str, np.dtype[Any]] = {
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "BF16": np.dtype("<u2"),
}


class Weights(Protocol):
    """Matrices and vectors by name, as float32, whole or in ranges of rows."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape; raises ExportError if there is no such tensor."""

    def rows(self, name: str, begin: int, end: int) -> FloatArray:
        """Return rows begin..end-1 of the tensor, in memory that belongs to the caller."""


def whole(weights: Weights, name: str) -> FloatArray:
    """Return a whole tensor."""
    return weights.rows(name, 0, weights.shape(name)[0])


def in_chunks(weights: Weights, name: str) -> Iterator[tuple[int, FloatArray]]:
    """Yield (first row, rows) until the end of a tensor, about CHUNK_BYTES at a time.

    The first row is an even one, so that int4 values of a chunk are whole bytes.
    """
    count, *rest = weights.shape(name)
    row_bytes = max(1, 4 * int(np.prod(rest, dtype=np.int64)))
    step = max(2, CHUNK_BYTES // row_bytes // 2 * 2)
    for begin in range(0, count, step):
        yield begin, weights.rows(name, begin, min(begin + step, count))


def cast(values: FloatArray, dtype: np.dtype[Any], name: str) -> npt.NDArray[Any]:
    """Return values in another type; raises ExportError if one of them is too large for it."""
    try:
        with np.errstate(over="raise"):
            return values.astype(dtype)
    except FloatingPointError as error:
        raise ExportError(f"{name} has values beyond those of {dtype}; write fp32") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where the values of one tensor are."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


class Checkpoint:
    """The tensors of safetensors files."""

    def __init__(self, places: dict[str, _Place], where: Path) -> None:
        self._places = places
        self._where = where

    @classmethod
    def from_folder(cls, folder: Path) -> Checkpoint:
        """Open model.safetensors, or the shards that model.safetensors.index.json lists.

        Raises UsageError if there is neither, ExportError for a file that is damaged.
        """
        single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
        if single.is_file():
            return cls.from_file(single)
        if not index.is_file():
            raise UsageError(
                f"no model.safetensors in {folder}, nor an index of shards; save the model again "
                "with save_pretrained(safe_serialization=True)"
            )
        places: dict[str, _Place] = {}
        for file, names in _shards(index).items():
            found = _places_in(safe_join(folder, file))
            for name in names:
                if name not in found:
                    raise ExportError(f"{folder / file} lacks {name}, which {index.name} lists")
                places[name] = found[name]
        return cls(places, folder)

    @classmethod
    def from_file(cls, path: Path) -> Checkpoint:
        """Open one safetensors file; raises ExportError if it is damaged."""
        return cls(_places_in(path), path)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """All tensors."""
        return {name: place.shape for name, place in self._places.items()}

    @property
    def parameters(self) -> int:
        """How many numbers the tensors hold together."""
        return sum(math.prod(place.shape) for place in self._places.values())

    def shape(self, name: str) -> tuple[int, ...]:
        """See Weights."""
        return self._place(name).shape

    def rows(self, name: str, begin: int, end: int) -> FloatArray:
        """See Weights."""
        place = self._place(name)
        row = int(np.prod(place.shape[1:], dtype=np.int64))
        dtype = DTYPES[place.dtype]
        with storage_errors("read", place.path), open_regular(place.path, True) as file:
            file.seek(place.offset + begin * row * dtype.itemsize)
            content = file.read((end - begin) * row * dtype.itemsize)
        if len(content) != (end - begin) * row * dtype.itemsize:
            raise ExportError(f"{place.path} ends inside {name}; copy the file again")
        values = _as_float32(np.frombuffer(content, dtype), place.dtype)
        if not np.isfinite(values).all():
            raise ExportError(f"{place.path}: {name} holds NaN or infinity; the model is spoilt")
        return values.reshape(end - begin, *place.shape[1:])

    def _place(self, name: str) -> _Place:
        if name not in self._places:
            raise ExportError(f"{self._where} has no tensor {name}; the model cannot be written")
        return self._places[name]


def _as_float32(values: npt.NDArray[Any], dtype: str) -> FloatArray:
    if dtype == "BF16":
        widened: npt.NDArray[np.uint32] = values.astype(np.uint32) << np.uint32(16)
        return widened.view(np.float32)
    return values.astype(np.float32)


def _shards(index: Path) -> dict[str, list[str]]:
    content = read_capped(index, max_bytes=MAX_INDEX_BYTES, follow_links=True)
    try:
        weight_map = msgspec.json.decode(content)["weight_map"]
        shards: dict[str, list[str]] = {}
        for name, file in msgspec.convert(weight_map, dict[str, str]).items():
            shards.setdefault(file, []).append(name)
    except (msgspec.MsgspecError, KeyError, TypeError) as error:
        raise ExportError(f"{index} is no index of shards: {error}") from error
    return shards


def _places_in(path: Path) -> dict[str, _Place]:
    with storage_errors("read", path), open_regular(path, True) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise ExportError(f"{path} is no safetensors file: its header has {length} bytes")
        header = file.read(length)
    try:
        entries = msgspec.json.decode(header, type=dict[str, dict[str, Any]])
        entries.pop("__metadata__", None)
        return dict(_checked_places(entries.items(), path, 8 + length, size))
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
        raise ExportError(f"{path} is no safetensors file: {error}") from error


def _checked_places(
    entries: Iterable[tuple[str, dict[str, Any]]], path: Path, base: int, size: int
) -> Iterator[tuple[str, _Place]]:
    for name, entry in entries:
        dtype, shape = str(entry["dtype"]), msgspec.convert(entry["shape"], tuple[int, ...])
        begin, end = msgspec.convert(entry["data_offsets"], tuple[int, int])
        if dtype not in DTYPES:
            raise ExportError(
                f"{path}: tensor {name} is {dtype}, the writer reads {', '.join(DTYPES)}; give "
                "the model before its quantization"
            )
        count = 1
        for dim in shape:
            count *= dim
        if min(shape, default=0) < 0 or not 0 <= begin <= end <= size - base:
            raise ExportError(f"{path}: tensor {name} lies outside the file; copy it again")
        if end - begin != count * DTYPES[dtype].itemsize:
            raise ExportError(f"{path}: tensor {name} has {end - begin} bytes for {list(shape)}")
        yield name, _Place(path=path, dtype=dtype, shape=shape, offset=base + begin)
