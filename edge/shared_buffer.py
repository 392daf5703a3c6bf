"""Memory that two processes see, so that tensors between them are copied once and never parsed."""

from __future__ import annotations

import fcntl
import mmap
import os

from edge.sealed import memory_file

_PAGE = mmap.PAGESIZE


class SharedBuffer:
    """A memory file that either side may make larger and, as it is sealed so, none smaller.

    A file that shrinks under a mapping would kill whoever reads it; see F_SEAL_SHRINK in fcntl(2).
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._map: mmap.mmap | None = None

    @classmethod
    def new(cls) -> SharedBuffer:
        """Return an empty one of this process."""
        descriptor = memory_file()
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        return cls(descriptor)

    def fileno(self) -> int:
        """Return the descriptor, for the other process."""
        return self._descriptor

    def for_writing(self, size: int) -> memoryview:
        """Return at least so many bytes from the start, made larger if need be."""
        if os.fstat(self._descriptor).st_size < size:
            os.ftruncate(self._descriptor, -(-size // _PAGE) * _PAGE)
        return self.for_reading(size)

    def for_reading(self, size: int) -> memoryview:
        """Return so many bytes from the start; raises ValueError if the other wrote fewer."""
        if size == 0:
            return memoryview(b"")
        if self._map is None or len(self._map) < size:
            self._map = mmap.mmap(self._descriptor, 0)
            if len(self._map) < size:
                raise ValueError(f"{len(self._map)} bytes are shared, not {size}")
        return memoryview(self._map)

    def close(self) -> None:
        """Give the memory back once no view is left."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._map = -1, None
