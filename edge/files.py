"""Files that survive: atomic writes, capped reads, digests, paths that cannot escape.

Anything that must outlive a power cut is written here: temporary file in the same directory,
flush, fsync, rename, fsync of the directory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from edge.errors import StorageError, os_reason

CHUNK_BYTES = 1 << 20


@contextlib.contextmanager
def storage_errors(action: str, path: Path) -> Iterator[None]:
    """Turn an OSError inside the block into one StorageError that names action and path."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot {action} {path}: {os_reason(error)}") from error


def atomic_write(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write content to path so that a reader sees the old file or the whole new one, never less.

    Raises StorageError; the temporary file is gone then, and the old file untouched unless only
    the last step failed, the fsync of the directory: then the new one is there, perhaps not yet
    durable.
    """
    with storage_errors("write", path), atomic_file(path, mode=mode) as file:
        file.write(content)


@contextlib.contextmanager
def atomic_file(path: Path, *, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Yield a file that appears at path only if the block ends without an exception."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a scratch directory that becomes path only if the block ends without an exception.

    Raises StorageError if something is at path already. A process killed inside the block leaves
    a hidden sibling, never a half-written path; the next call for the same path removes it. Of
    two processes that write the same path at once, the first to finish wins.
    """
    if os.path.lexists(path):
        raise StorageError(f"cannot write {path}: it exists; remove it or give another path")
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        # mkdtemp draws no dot: one more is the scratch of a longer name.
        if stale.name.count(".") == path.name.count(".") + 3:
            with _lock(stale) as is_abandoned:
                if is_abandoned:
                    shutil.rmtree(stale, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial"))
    scratch.chmod(0o755)
    with _lock(scratch):
        try:
            yield scratch
            _sync_tree(scratch)
            scratch.rename(path)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make renames and new names inside a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_capped(path: Path, *, max_bytes: int, follow_links: bool = False) -> bytes:
    """Return the content of a regular file, refusing one that is larger than max_bytes.

    follow_links: for files that a user names; inside a bundle a link is refused.

    Raises StorageError naming the file; never reads more than max_bytes + 1 bytes.
    """
    with storage_errors("read", path), open_regular(path, follow_links) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise StorageError(f"cannot read {path}: larger than the cap of {max_bytes} bytes")
    return content


def open_regular(path: Path, follow_links: bool = False) -> BinaryIO:
    """Open a regular file for reading; a pipe or device at path, or a link, is an OSError."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags if follow_links else flags | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a symbolic link") from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def sha256_of(
    path: Path, *, max_bytes: int | None = None, follow_links: bool = False
) -> tuple[str, int]:
    """Return (hex digest, size in bytes) of a regular file, reading at most max_bytes + 1."""
    digest, size = hashlib.sha256(), 0
    limit = sys.maxsize if max_bytes is None else max_bytes + 1
    with storage_errors("read", path), open_regular(path, follow_links) as file:
        while chunk := file.read(min(CHUNK_BYTES, limit - size)):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


def safe_join(root: Path, relative: str) -> Path:
    """Return root/relative; raises StorageError if relative is absolute or leaves root."""
    parts = relative.split("/")
    if "\0" in relative or any(p in {"", ".", ".."} for p in parts):
        raise StorageError(f"path {relative!r} is not a plain path below {root}")
    return root.joinpath(*parts)


@contextlib.contextmanager
def _lock(directory: Path) -> Iterator[bool]:
    """Hold a lock on a directory, which dies with the process; yield whether it was free."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_free = True
    except BlockingIOError:
        is_free = False
    try:
        yield is_free
    finally:
        os.close(descriptor)


def _sync_tree(root: Path) -> None:
    for directory, _, names in os.walk(root):
        for name in names:
            descriptor = os.open(Path(directory) / name, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_directory(Path(directory))
