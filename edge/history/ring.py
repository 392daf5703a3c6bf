"""A file of fixed size in which the newest record takes the place of the oldest.

    header   magic, names of the columns by digest, number of records
    record   sequence number, time, one float per column, crc32 of all that

A record that was torn by a power cut does not match its checksum and is left out; nothing is
synced, so that a card is not worn out: what the kernel has not written yet is lost with the power.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

_MAGIC = b"EDGEHIST"
_HEADER = struct.Struct("<8s32sQ")
Table = npt.NDArray[np.float64]


class RingFile:
    """Records of some columns in a file; make it with `open`. Used from one thread."""

    def __init__(self, descriptor: int, columns: Sequence[str], size: int) -> None:
        self._descriptor = descriptor
        self._record = struct.Struct(f"<Qd{len(columns)}f")
        self._size = size
        self._next = 0

    @classmethod
    def open(cls, path: Path, columns: Sequence[str], *, size: int) -> tuple[RingFile, Table]:
        """Return the file and what it holds, oldest first: a row is a time and the columns.

        columns: their names; a file with others, or with another size, or with garbage, begins
        anew. size: records. Raises OSError if the file cannot be had, or another process has it.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(path, flags, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(f"{path} is not a regular file")
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ring = cls(descriptor, columns, size)
            return ring, ring._begin(_header(columns, size))
        except BaseException:
            os.close(descriptor)
            raise

    def add(self, time_s: float, values: Sequence[float]) -> None:
        """Write a record in the place of the oldest; raises OSError if the disk refuses."""
        content = self._record.pack(self._next, time_s, *values)
        content += struct.pack("<I", zlib.crc32(content))
        place = _HEADER.size + self._next % self._size * len(content)
        os.pwrite(self._descriptor, content, place)
        self._next += 1

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _begin(self, header: bytes) -> Table:
        if os.pread(self._descriptor, len(header), 0) != header:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, header, 0)
        width = self._record.size + 4
        content = os.pread(self._descriptor, width * self._size, len(header))
        records = {}
        for start in range(0, len(content) - width + 1, width):
            record = content[start : start + self._record.size]
            check = struct.unpack_from("<I", content, start + len(record))[0]
            if zlib.crc32(record) == check:
                sequence, *values = self._record.unpack(record)
                # One that stands in another's place was never written there by us.
                if sequence % self._size == start // width:
                    records[sequence] = values
        self._next = max(records, default=-1) + 1
        newest = [seq for seq in sorted(records) if seq >= self._next - self._size]
        columns = len(self._record.unpack(bytes(self._record.size))) - 1
        return np.array([records[seq] for seq in newest], dtype=np.float64).reshape(-1, columns)


def _header(columns: Sequence[str], size: int) -> bytes:
    return _HEADER.pack(_MAGIC, hashlib.sha256("\0".join(columns).encode()).digest(), size)
