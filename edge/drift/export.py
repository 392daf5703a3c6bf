"""What an agent keeps, as files that training and `edge-kit calibrate --data` read.

inputs/0001.npz     inputs by name, one row a sample; a file for each combination of shapes, and
of lengths of the texts among them, up to a power of two
inputs/lines.jsonl  instead, of rows whose texts fit no such array: an object a line, texts in
base64
inputs/texts.txt    instead, of a model that was asked with texts: one a line
answers/0001.npz    outputs by name, of the same rows; answers/texts.npz of the texts, and
answers/lines.npz; .jsonl with the outputs whose texts fit no array
rows.jsonl          a line for each row, the oldest first: where it is, when it came, whether
in a window that drifted, and which class it was given
export.json         where it comes from
"""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import IO

import msgspec
import numpy as np

from edge.classes import Classes, guesses
from edge.drift.kept_folder import About, KeptRow, find_kept, kept_folders
from edge.errors import StorageError, UsageError
from edge.files import atomic_directory, storage_errors
from edge.spec import AnyArray

TEXTS, LINES = "texts", "lines"
MAX_PADDING = 4  # bytes of an array of texts, for each byte of these
FREE_PADDING_BYTES = 1 << 12  # of a row


_SUFFIXES = {TEXTS: ".txt", LINES: ".jsonl"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What is exported. reference: the first digits of its SHA-256, that rows were compared with.

    rows: of windows that drifted and of others.
    left_out: rows that are damaged, or in which what is to be redacted cannot be found for certain.
    first, last: when the oldest and the newest row came, UTC; None without rows.
    """

    model: str
    model_version: str
    bundle_version: str
    reference: str
    redact: tuple[str, ...]
    rows: int
    drifted: int
    left_out: int
    bytes: int
    first: str | None
    last: str | None


class _Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line of rows.jsonl. number: of the class that the model gave, with its label and score."""

    file: str
    row: int
    time: str
    drifted: bool
    number: int | None = None
    label: str | None = None
    score: float | None = None
    text: str | None = None


class Kept:
    """All that is kept of one model, in memory."""

    def __init__(self, about: About, rows: Sequence[KeptRow], *, left_out: int) -> None:
        self.about = about
        self.rows = sorted(rows, key=lambda kept: kept.row.when)
        self.left_out = left_out

    @classmethod
    def read(
        cls, folder: Path, model: str, redact: Collection[str], reference: str | None = None
    ) -> Kept:
        """Return what is in a folder, of the last reference or of one.

        reference: the first digits of its SHA-256. Raises UsageError if there is nothing,
        StorageError.
        """
        kept = find_kept(folder, model, reference)
        about = kept.about()
        for name in redact:
            if name not in about.inputs:
                raise UsageError(
                    f"model {model!r} has no input {name!r} to redact, only "
                    f"{', '.join(about.inputs)}"
                )
        found = list(kept.rows(redact))
        rows = [row for row in found if row is not None]
        if not rows:
            names = [k.path.name for k, _ in kept_folders(folder, model) if k.path != kept.path]
            others = f"; there is --reference {' or '.join(names)}" if names else ""
            raise StorageError(
                f"{kept.path} holds no inputs yet{others}"
                if not found
                else f"none of the {len(found)} inputs in {kept.path} can be read or redacted"
            )
        return cls(about, rows, left_out=len(found) - len(rows))

    def summary(self, redact: tuple[str, ...]) -> Export:
        """Return what there is."""
        times = [_time(kept.row.when) for kept in self.rows]
        arrays = [
            array
            for kept in self.rows
            for array in (*kept.row.feeds.values(), *kept.row.outputs.values())
        ]
        texts = sum(len(kept.row.text or "") for kept in self.rows)
        return Export(
            model=self.about.model,
            model_version=self.about.model_version,
            bundle_version=self.about.bundle_version,
            reference=self.about.reference,
            redact=redact,
            rows=len(self.rows),
            drifted=sum(kept.is_drifted for kept in self.rows),
            left_out=self.left_out,
            bytes=sum(array.nbytes for array in arrays) + texts,
            first=times[0] if times else None,
            last=times[-1] if times else None,
        )

    def write(self, out: Path, export: Export) -> None:
        """Write a new folder, for its owner only; raises StorageError if there is one already."""
        with storage_errors("write", out), atomic_directory(out) as scratch:
            scratch.chmod(0o700)
            places: dict[int, tuple[str, int]] = {}
            for name, numbers in self._files().items():
                self._write_file(scratch, name, numbers)
                suffix = _SUFFIXES.get(name, ".npz")
                places.update({n: (f"inputs/{name}{suffix}", i) for i, n in enumerate(numbers)})
            with _new(scratch / "rows.jsonl") as file:
                for number, kept in enumerate(self.rows):
                    line = self._line(kept, *places[number])
                    file.write(msgspec.json.encode(line) + b"\n")
            with _new(scratch / "export.json") as file:
                file.write(msgspec.json.format(msgspec.json.encode(export), indent=2) + b"\n")

    def _files(self) -> dict[str, list[int]]:
        """Return the numbers of the rows that each file holds: those of like shapes and texts."""
        groups: dict[object, list[int]] = {}
        for number, kept in enumerate(self.rows):
            key: object = TEXTS
            if kept.row.text is None:
                feeds = sorted(kept.row.feeds.items())
                key = [(n, a.shape, a.dtype.str, _longest(a).bit_length()) for n, a in feeds]
                if not all(_is_array_of_bytes([a]) for _, a in feeds):
                    key = LINES
            groups.setdefault(str(key), []).append(number)
        names = map("{:04d}".format, range(1, len(groups) + 1))
        return {key if key in _SUFFIXES else next(names): group for key, group in groups.items()}

    def _write_file(self, scratch: Path, name: str, numbers: Sequence[int]) -> None:
        rows = [self.rows[number].row for number in numbers]
        if name == TEXTS:
            with _new(scratch / "inputs" / "texts.txt") as file:
                for row in rows:
                    file.write(" ".join((row.text or "").split()).encode() + b"\n")
        elif name == LINES:
            _write_lines(scratch / "inputs" / f"{name}.jsonl", [row.feeds for row in rows])
        else:
            with _new(scratch / "inputs" / f"{name}.npz") as file:
                names = rows[0].feeds
                _save(file, {n: _joined([row.feeds[n] for row in rows]) for n in names})
        # Of outputs whose rows have one shape, and that no row lacks.
        shapes = [{n: a.shape for n, a in row.outputs.items()} for row in rows]
        common = [n for n in shapes[0] if all(s.get(n) == shapes[0][n] for s in shapes)]
        columns = {n: [row.outputs[n] for row in rows] for n in common}
        arrays = {n: column for n, column in columns.items() if _is_array_of_bytes(column)}
        if arrays:
            with _new(scratch / "answers" / f"{name}.npz") as file:
                _save(file, {n: _joined(column) for n, column in arrays.items()})
        others = [n for n in columns if n not in arrays]
        if others:
            lines = [{n: row.outputs[n] for n in others} for row in rows]
            _write_lines(scratch / "answers" / f"{name}.jsonl", lines)

    def _line(self, kept: KeptRow, file: str, row: int) -> _Line:
        number = label = score = None
        scores = self.about.scores
        if scores is not None and scores.output in kept.row.outputs:
            labels = self.about.labels or tuple(map(str, range(scores.classes)))
            how = Classes(output=scores.output, labels=labels, softmax=scores.softmax, top=1)
            guess = guesses(kept.row.outputs[scores.output], how)[0][0]
            number, score = guess.number, round(guess.score, 6)
            label = guess.label if self.about.labels else None
        return _Line(
            file=file,
            row=row,
            time=_time(kept.row.when),
            drifted=kept.is_drifted,
            number=number,
            label=label,
            score=score,
            text=kept.row.text,
        )


def _longest(array: AnyArray) -> int:
    """Return the size of the longest text in an array, 0 of an array of numbers."""
    return max(map(len, array.ravel().tolist()), default=0) if array.dtype.kind == "O" else 0


def _is_array_of_bytes(rows: Sequence[AnyArray]) -> bool:
    """Return whether rows can be one array of numpy's bytes, if they are texts.

    It has the length of the longest for each of them, and no zeros at their ends.
    """
    texts = [text for row in rows if row.dtype.kind == "O" for text in row.ravel().tolist()]
    if any(text.endswith(b"\0") for text in texts):
        return False
    free = FREE_PADDING_BYTES * len(rows)
    return len(texts) * max(map(len, texts), default=0) <= MAX_PADDING * sum(map(len, texts)) + free


def _joined(rows: Sequence[AnyArray]) -> AnyArray:
    """Return rows as one array that a file can hold: texts as an array of bytes."""
    array = np.concatenate(rows)
    return array.astype(np.bytes_) if array.dtype.kind == "O" else array


def _save(file: IO[bytes], arrays: Mapping[str, AnyArray]) -> None:
    """Write an .npz file; numpy.savez takes no array that is called "file"."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as part:
                np.lib.format.write_array(part, array, allow_pickle=False)


def _write_lines(path: Path, rows: Sequence[Mapping[str, AnyArray]]) -> None:
    with _new(path) as file:
        for row in rows:
            file.write(msgspec.json.encode({n: a[0].tolist() for n, a in row.items()}) + b"\n")


def _new(path: Path) -> IO[bytes]:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.touch(mode=0o600, exist_ok=False)
    return path.open("wb")


def _time(when: float) -> str:
    return datetime.fromtimestamp(when, timezone.utc).isoformat(timespec="milliseconds")
