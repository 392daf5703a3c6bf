"""Where the rows of a model are kept, for each reference that they were compared with.

    FOLDER/MODEL/REFERENCE/about.json             whose rows these are
    FOLDER/MODEL/REFERENCE/steady/KEY.capture     of windows like the reference
    FOLDER/MODEL/REFERENCE/drifted/KEY.capture    of others

All of it is for the owner only. Nothing is synced: what a power cut damages is one row. Files of
other names are nobody's business here, and stay.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge.drift.kept import MAX_FILE_BYTES, Row, redacted_bytes, row_from_bytes
from edge.drift.reading import Scores
from edge.errors import EdgeError, StorageError, UsageError
from edge.files import read_capped, storage_errors

STEADY, DRIFTED = "steady", "drifted"
FOLDERS = (STEADY, DRIFTED)
ABOUT = "about.json"
MAX_OTHERS = 1  # references whose rows stay beside those of the one in service
REFERENCE_DIGITS = 16
_REFERENCE = re.compile(f"[0-9a-f]{{{REFERENCE_DIGITS}}}")
_ROW = re.compile(r"([0-9a-f]{14})\.capture")
_PARTIAL = ".partial"
_PARTIAL_ROW = re.compile(rf"[0-9a-f]{{14}}\{_PARTIAL}")
_MAX_ABOUT_BYTES = 16 << 20
_VERSION = 1


class About(msgspec.Struct, frozen=True, kw_only=True):
    """Whose rows these are.

    reference_sha256: of the reference that they were compared with. inputs, outputs: whose rows
    are kept. scores: which output holds a score for each class, with their names in labels.
    redact: inputs whose contents no row holds. opened: larger than of all that was opened before.
    """

    version: int = _VERSION
    model: str
    model_version: str
    bundle_version: str
    reference_sha256: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    scores: Scores | None
    labels: tuple[str, ...] = ()
    redact: tuple[str, ...] = ()
    opened: int = 0

    @property
    def reference(self) -> str:
        """The name of its folder."""
        return self.reference_sha256[:REFERENCE_DIGITS]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRow:
    """A row from a file. is_drifted: whether it came in a window that differed."""

    row: Row
    is_drifted: bool


class DamagedError(StorageError):
    """A description that can be read but not understood."""


_DECODER = msgspec.json.Decoder(About)


class KeptFolder:
    """The rows of one model that were compared with one reference."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def about(self) -> About:
        """Return whose rows these are; raises DamagedError, StorageError."""
        path = self.path / ABOUT
        try:
            about = _DECODER.decode(read_capped(path, max_bytes=_MAX_ABOUT_BYTES))
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise DamagedError(f"{path} is damaged: {error}; remove {self.path}") from error
        if about.version != _VERSION:
            raise StorageError(
                f"{path} has version {about.version}, this edge-agent reads {_VERSION}; remove "
                f"{self.path} to begin anew"
            )
        return about

    def make(self, about: About) -> None:
        """Write whose rows these are, and make what is missing; raises OSError."""
        for path in (self.path.parent, self.path):
            path.mkdir(mode=0o700, exist_ok=True)
        _write(self.path / ABOUT, msgspec.json.encode(about))
        for name in FOLDERS:
            (self.path / name).mkdir(mode=0o700, exist_ok=True)

    def keys(self, folder: str) -> Iterator[tuple[int, int]]:
        """Yield the key and the bytes of every row; what is left of a cut-off write is removed."""
        for path in (self.path / folder).iterdir():
            if row := _ROW.fullmatch(path.name):
                yield int(row[1], 16), path.stat().st_size
            elif _PARTIAL_ROW.fullmatch(path.name):
                path.unlink()

    def write(self, folder: str, key: int, content: bytes) -> None:
        """Store a row; raises OSError."""
        _write(self._file(folder, key), content)

    def remove(self, folder: str, key: int) -> None:
        """Remove a row, if it is there."""
        self._file(folder, key).unlink(missing_ok=True)

    def rows(self, redact: Collection[str]) -> Iterator[KeptRow | None]:
        """Yield what is kept, and None for each row that is damaged or cannot be redacted.

        The agent may go on meanwhile: what it removes is skipped. Raises StorageError.
        """
        for folder in FOLDERS:
            with storage_errors("read", self.path / folder):
                paths = sorted(p for p in (self.path / folder).iterdir() if _ROW.fullmatch(p.name))
            for path in paths:
                try:
                    content = read_capped(path, max_bytes=MAX_FILE_BYTES)
                except StorageError:
                    if path.exists():
                        raise
                    continue
                try:
                    row = row_from_bytes(content, redact=redact)
                except (EdgeError, ValueError):
                    row = None
                yield None if row is None else KeptRow(row=row, is_drifted=folder == DRIFTED)

    def redact(self, names: Collection[str]) -> None:
        """Leave contents out of the rows that are there; one in which this fails is removed."""
        for folder in self._folders():
            for key, _ in list(self.keys(folder)):
                try:
                    content = read_capped(self._file(folder, key), max_bytes=MAX_FILE_BYTES)
                    blank = redacted_bytes(content, redact=names)
                    if blank is not None:
                        self.write(folder, key, blank)
                        continue
                except (EdgeError, ValueError, OSError):
                    pass
                self.remove(folder, key)

    def clear(self) -> None:
        """Remove the rows and what says whose they are; raises OSError."""
        for folder in self._folders():
            for key, _ in list(self.keys(folder)):
                self.remove(folder, key)
            with contextlib.suppress(OSError):  # what is not of the agent is in it
                (self.path / folder).rmdir()
        for name in (ABOUT, _partial(self.path / ABOUT).name):
            (self.path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def _folders(self) -> list[str]:
        return [name for name in FOLDERS if (self.path / name).is_dir()]

    def _file(self, folder: str, key: int) -> Path:
        return self.path / folder / f"{key:014x}.capture"


def open_folder(folder: Path, about: About) -> KeptFolder:
    """Return where the rows of a model are kept, which goes on with what is there.

    Of other references the rows of the last one stay, as this bundle may be on trial only; what
    is older is removed. Of all that stays, contents that are to be redacted now are left out.
    Raises StorageError; so for a folder that is not of the agent.
    """
    mine = KeptFolder(folder / about.model / about.reference)
    with storage_errors("write", mine.path):
        found = kept_folders(folder, about.model)
        if not found:
            _refuse_foreign(mine.path.parent)
        if all(kept.path != mine.path for kept, _ in found):
            _refuse_foreign(mine.path)
        others = 0
        for kept, was in found:
            is_mine = kept.path == mine.path
            others += not is_mine
            if not is_mine and (was is None or others > MAX_OTHERS):
                kept.clear()
                continue
            lacking = set() if was is None else set(was.redact)
            if not lacking.issuperset(about.redact):
                kept.redact(about.redact)
                if was is not None:
                    names = tuple(sorted(lacking | set(about.redact)))
                    kept.make(msgspec.structs.replace(was, redact=names))
        folder.mkdir(parents=True, exist_ok=True)
        opened = 1 + max((was.opened for _, was in found if was is not None), default=0)
        mine.make(msgspec.structs.replace(about, opened=opened))
    return mine


def kept_folders(folder: Path, model: str) -> list[tuple[KeptFolder, About | None]]:
    """Return what is kept of a model, the last opened first; those that are damaged come last.

    Raises StorageError for what cannot be read.
    """
    found: list[tuple[KeptFolder, About | None]] = []
    with storage_errors("read", folder / model):
        paths = sorted((folder / model).iterdir()) if (folder / model).exists() else []
        for path in paths:
            if not _REFERENCE.fullmatch(path.name) or path.is_symlink():
                continue
            if (path / ABOUT).is_file():
                kept = KeptFolder(path)
                try:
                    found.append((kept, kept.about()))
                except DamagedError:
                    found.append((kept, None))
    return sorted(found, key=lambda each: 0 if each[1] is None else -each[1].opened)


def find_kept(folder: Path, model: str, reference: str | None = None) -> KeptFolder:
    """Return the last opened of what is kept of a model, or that with a reference.

    reference: the first digits of its SHA-256. Raises UsageError if there is none, StorageError.
    """
    found = [kept for kept, _ in kept_folders(folder, model)]
    if not found:
        raise UsageError(
            f"no inputs of a model {model!r} are kept in {folder}; set drift_keep_inputs of the "
            "agent, and give the folder of its drift_keep_folder"
        )
    wanted = [kept for kept in found if reference is None or kept.path.name.startswith(reference)]
    if not wanted:
        raise UsageError(
            f"no inputs of model {model!r} are kept for a reference {reference}, only for "
            f"{', '.join(kept.path.name for kept in found)}"
        )
    return wanted[0]


def _refuse_foreign(path: Path) -> None:
    """Raise StorageError for a folder in which somebody else has files."""
    if not path.exists():
        return
    ours = {_partial(path / ABOUT).name}
    names = sorted(each.name for each in path.iterdir() if each.name not in ours)
    is_begun = len(names) == 1 and _REFERENCE.fullmatch(names[0])  # cut off before its about.json
    if names and not is_begun:
        raise StorageError(
            f"{path} holds {names[0]!r}, which no agent has kept there; give another "
            "drift_keep_folder, or remove it"
        )


def _write(path: Path, content: bytes) -> None:
    partial = _partial(path)
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        partial.rename(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _partial(path: Path) -> Path:
    return path.with_suffix(_PARTIAL)
