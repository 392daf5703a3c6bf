"""Every call by which the slots touch the disk, so that tests can cut the power at each of them.

What a call promises is what POSIX promises: written bytes and names may be lost, or arrive in part
and in any order, until the file or the directory that holds the name was synced. A rename is
whole, or has not happened. Every call may raise OSError.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from edge.files import open_regular

READ_BYTES = 1 << 18


class WritableFile(Protocol):
    """A file that is being written."""

    def write(self, content: bytes) -> None:
        """Append all of content."""

    def sync(self, mode: int) -> None:
        """Set the permissions, and make them and all bytes durable; not the name."""

    def close(self) -> None:
        """Close the file."""


class Filesystem(Protocol):
    """The disk below the slots."""

    def read(self, path: Path, *, max_bytes: int) -> bytes:
        """Return the first max_bytes + 1 bytes of a regular file."""

    def chunks(self, path: Path) -> Iterator[memoryview]:
        """Yield a regular file's content; a chunk is valid until the next one."""

    def size(self, path: Path) -> int | None:
        """Return the size of a regular file, None if there is nothing."""

    def names(self, directory: Path) -> tuple[str, ...]:
        """Return the names in a directory, sorted; none if there is no directory."""

    def link_target(self, path: Path) -> str | None:
        """Return where a symbolic link leads, None if there is none."""

    def free_bytes(self, directory: Path) -> int:
        """Return how many bytes may still be written."""

    def make_directory(self, path: Path) -> None:
        """Make a directory unless there is one; its name is durable when its parent is synced."""

    def make_link(self, target: str, path: Path) -> None:
        """Make a symbolic link."""

    def append_to(self, path: Path, *, offset: int) -> WritableFile:
        """Open a file for writing at its end, made if missing; first cut it to offset bytes."""

    def rename(self, source: Path, destination: Path) -> None:
        """Give a file another name, at once and in place of what had that name."""

    def remove(self, path: Path) -> None:
        """Remove a file, or do nothing if there is none."""

    def sync_directory(self, directory: Path) -> None:
        """Make the names in a directory durable."""

    def lock(self, path: Path, *, wait: bool, note: str) -> AbstractContextManager[str | None]:
        """Hold a lock while in the block; yield the holder's note if another has it, else None."""


class OsFilesystem:
    """The disk of this machine."""

    def read(self, path: Path, *, max_bytes: int) -> bytes:
        """Return the first max_bytes + 1 bytes of a regular file."""
        with open_regular(path) as file:
            return file.read(max_bytes + 1)

    def chunks(self, path: Path) -> Iterator[memoryview]:
        """Yield a regular file's content; a chunk is valid until the next one."""
        chunk = memoryview(bytearray(READ_BYTES))
        with open_regular(path) as file:
            while size := os.readv(file.fileno(), [chunk]):
                yield chunk[:size]

    def size(self, path: Path) -> int | None:
        """Return the size of a regular file, None if there is nothing."""
        try:
            status = path.lstat()
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return status.st_size

    def names(self, directory: Path) -> tuple[str, ...]:
        """Return the names in a directory, sorted; none if there is no directory."""
        try:
            return tuple(sorted(os.listdir(directory)))  # noqa: PTH208 - names, not paths
        except FileNotFoundError:
            return ()

    def link_target(self, path: Path) -> str | None:
        """Return where a symbolic link leads, None if there is none."""
        return os.readlink(path) if path.is_symlink() else None  # noqa: PTH115 - as it is spelled

    def free_bytes(self, directory: Path) -> int:
        """Return how many bytes may still be written, there or where it would be made."""
        directory = directory.absolute()
        while not directory.exists():
            directory = directory.parent
        status = os.statvfs(directory)
        return status.f_bavail * status.f_frsize

    def make_directory(self, path: Path) -> None:
        """Make a directory unless there is one, for everybody to read whatever the umask."""
        try:
            path.mkdir()
        except FileExistsError:
            if not path.is_dir():
                raise
            return
        path.chmod(0o755)

    def make_link(self, target: str, path: Path) -> None:
        """Make a symbolic link."""
        path.symlink_to(target)

    def append_to(self, path: Path, *, offset: int) -> WritableFile:
        """Open a file for writing at its end, made if missing; first cut it to offset bytes."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        safe = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags | safe, 0o600)
        try:
            if os.fstat(descriptor).st_size != offset:
                os.ftruncate(descriptor, offset)
        except BaseException:
            os.close(descriptor)
            raise
        return _OsFile(descriptor)

    def rename(self, source: Path, destination: Path) -> None:
        """Give a file another name, at once and in place of what had that name."""
        source.replace(destination)

    def remove(self, path: Path) -> None:
        """Remove a file, or do nothing if there is none."""
        path.unlink(missing_ok=True)

    def sync_directory(self, directory: Path) -> None:
        """Make the names in a directory durable."""
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def lock(self, path: Path, *, wait: bool, note: str) -> Iterator[str | None]:
        """Hold a lock while in the block; yield the holder's note if another has it, else None.

        Nobody but the owner may open the file: who can open it could hold the lock for ever.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield os.pread(descriptor, 200, 0).decode("utf-8", "replace") or "another process"
                return
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, note.encode(), 0)
            yield None
        finally:
            os.close(descriptor)


class _OsFile:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, content: bytes) -> None:
        left = memoryview(content)
        while left:
            left = left[os.write(self._descriptor, left) :]

    def sync(self, mode: int) -> None:
        os.fchmod(self._descriptor, mode)
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)
