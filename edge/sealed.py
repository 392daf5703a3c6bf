"""Bytes that were checked once and cannot change afterwards: a sealed file in memory.

An engine is executable code, so what is verified must be what is opened, by this process and by
the child that tries it first. Linux seals a memory file against every writer, owner included;
see memfd_create(2) and F_ADD_SEALS in fcntl(2).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from edge.errors import BundleError, StorageError
from edge.files import CHUNK_BYTES, open_regular, storage_errors

SEAL_ATTEMPTS = 50
SEAL_PAUSE_S = 0.01
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Sealed:
    """A sealed file in memory; `fileno` may be handed to a child process."""

    def __init__(self, descriptor: int, size: int) -> None:
        self.size = size
        self._descriptor = descriptor

    @classmethod
    def from_file(cls, path: Path, *, size: int, sha256: str) -> Sealed:
        """Read a file once and seal it; raises BundleError unless it has this size and digest."""
        digest = hashlib.sha256()

        def checked() -> Iterator[bytes]:
            with storage_errors("read", path), open_regular(path) as file:
                left = size + 1
                while left and (chunk := file.read(min(CHUNK_BYTES, left))):
                    digest.update(chunk)
                    left -= len(chunk)
                    yield chunk

        sealed = cls._of(checked())
        if sealed.size != size or digest.hexdigest() != sha256:
            sealed.close()
            raise BundleError(f"{path} does not match its digest; fetch the bundle again")
        return sealed

    @classmethod
    def from_bytes(cls, content: bytes) -> Sealed:
        """Seal bytes of this process."""
        return cls._of(iter((content,)))

    @classmethod
    def from_memory_file(cls, descriptor: int) -> Sealed:
        """Seal what a child wrote into a memory file that it was given."""
        for attempt in range(SEAL_ATTEMPTS):
            try:
                fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
                break
            except OSError as error:
                # The kernel may hold one of the pages for a moment longer than the write.
                if error.errno != errno.EBUSY or attempt == SEAL_ATTEMPTS - 1:
                    raise
                time.sleep(SEAL_PAUSE_S)
        return cls(descriptor, os.fstat(descriptor).st_size)

    @classmethod
    def _of(cls, chunks: Iterator[bytes]) -> Sealed:
        descriptor = memory_file()
        try:
            with os.fdopen(os.dup(descriptor), "wb") as file:
                _write(file, chunks)
            return cls.from_memory_file(descriptor)
        except BaseException:
            os.close(descriptor)
            raise

    def fileno(self) -> int:
        """Return the descriptor of the memory file."""
        return self._descriptor

    def view(self) -> mmap.mmap | bytes:
        """Return the bytes without a copy."""
        if self.size == 0:
            return b""
        return mmap.mmap(self._descriptor, self.size, prot=mmap.PROT_READ)

    def close(self) -> None:
        """Free the memory once no view is left."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


def memory_file() -> int:
    """Return the descriptor of an empty memory file that can be sealed."""
    return os.memfd_create("edge-kit", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def memory_content(descriptor: int) -> bytes:
    """Return what a memory file holds."""
    size = os.fstat(descriptor).st_size
    if size == 0:
        return b""
    with mmap.mmap(descriptor, size, prot=mmap.PROT_READ) as view:
        return bytes(view)


def _write(file: BinaryIO, chunks: Iterator[bytes]) -> None:
    try:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
    except OSError as error:
        raise StorageError(f"cannot keep a file in memory: {error.strerror}") from error
