"""Where a channel's files come from: one web server, or one folder such as a USB stick.

An Origin never leaves its own place: no redirects, no links, no names that climb out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edge.errors import FreshnessError, os_reason
from edge.files import CHUNK_BYTES, open_regular, safe_join

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """The bytes of a file from offset on; offset is 0 where the origin cannot begin later."""

    offset: int
    chunks: Iterator[bytes]


class Origin(Protocol):
    """Gives files by their path below the repository."""

    def open(self, path: str, *, offset: int = 0) -> Body | None:
        """Return a file's bytes, None if there is no such file; else raises FreshnessError.

        The chunks raise FreshnessError where they are cut or come too slowly. How many there are
        is for the caller to bound.
        """

    def close(self) -> None:
        """Let go of the connection."""


class FolderOrigin:
    """Files of a folder; links are not followed."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def open(self, path: str, *, offset: int = 0) -> Body | None:
        """Return a file's bytes."""
        try:
            return self._opened(path, offset)
        except OSError as error:  # a stick that is pulled, a folder that is not ours to read
            raise FreshnessError(f"cannot read {self._root}: {os_reason(error)}") from error

    def _opened(self, path: str, offset: int) -> Body | None:
        if not self._root.is_dir():
            raise FreshnessError(
                f"no channel at {self._root}: not a folder; plug the stick in, or give its folder"
            )
        file = safe_join(self._root, path)
        for parent in file.relative_to(self._root).parents:
            if (self._root / parent).is_symlink() and parent != Path():
                raise FreshnessError(f"{self._root / parent} is a link; copy the files themselves")
        return Body(offset=offset, chunks=_file_chunks(file, offset)) if file.exists() else None

    def close(self) -> None:
        """Nothing is kept open."""


def _file_chunks(path: Path, offset: int) -> Iterator[bytes]:
    try:
        with open_regular(path) as file:
            file.seek(offset)
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise FreshnessError(f"cannot read {path}: {os_reason(error)}") from error
