"""The audit log of rollouts: lines that are only appended, each with the digest of all before it.

Who changes or removes a line breaks every digest behind it. Who cuts the end off breaks none, which
is why the last digest is printed at the end of every rollout, and by `edge-kit fleet audit`.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edge.errors import EdgeError
from edge.files import open_regular, storage_errors

MAX_LINE_BYTES = 32 << 20  # all names of the largest inventory, twice
FIRST = "0" * 64


class AuditError(EdgeError):
    """An audit log was altered, or is not one."""

    code = "audit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What a line says. time: UTC. before: digest of the line before, FIRST in the first."""

    time: str
    who: str
    event: str
    facts: dict[str, Any]
    before: str


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """Where a log ends: with the line of this digest, after so many bytes."""

    digest: str = FIRST
    size: int = 0


class AuditLog:
    """A log in one file, which may be shared by several processes."""

    def __init__(self, path: Path, *, who: str, now: Callable[[], str]) -> None:
        self._path = path
        self._who = who
        self._now = now
        self.end = End()  # as this process left it

    def append(self, event: str, facts: Mapping[str, Any]) -> None:
        """Write a line durably; raises AuditError if the log was altered.

        A line that a power cut left unfinished at the end is cut off first. The whole log is
        checked at the first line and after lines of others: else thousands of devices would take
        millions of checks.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with storage_errors("write", self._path):
            descriptor = os.open(self._path, flags, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if os.fstat(descriptor).st_size != self.end.size:
                    self.end = _end(self._path)
                    os.ftruncate(descriptor, self.end.size)
                entry = Entry(
                    time=self._now(),
                    who=self._who,
                    event=event,
                    facts=dict(facts),
                    before=self.end.digest,
                )
                line = msgspec.json.encode(entry, order="sorted") + b"\n"
                if len(line) > MAX_LINE_BYTES:  # nobody could read the log any more
                    raise AuditError(f"{self._path}: {event} would take {len(line):,} bytes")
                os.pwrite(descriptor, line, self.end.size)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        self.end = End(digest=_digest(line), size=self.end.size + len(line))


def entries(path: Path) -> Iterator[tuple[Entry, End]]:
    """Yield every entry, and where the log would end with it.

    Raises AuditError at the first line that does not follow from those before.
    """
    end = End()
    for number, line in enumerate(_lines(path), start=1):
        if not line.endswith(b"\n"):
            return  # a power cut: nothing follows it
        try:
            entry = msgspec.json.decode(line, type=Entry)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise AuditError(f"{path}, line {number} is no entry: {error}") from error
        if entry.before != end.digest:
            raise AuditError(
                f"{path}, line {number} does not follow from line {number - 1}: one of them was "
                "altered, or a line is missing; compare with a copy of the log"
            )
        end = End(digest=_digest(line), size=end.size + len(line))
        yield entry, end


def _end(path: Path) -> End:
    end = End()
    for _, after in entries(path):
        end = after
    return end


def _lines(path: Path) -> Iterator[bytes]:
    with storage_errors("read", path), open_regular(path) as file:
        while line := file.readline(MAX_LINE_BYTES + 1):
            if len(line) > MAX_LINE_BYTES:
                raise AuditError(f"{path} has a line of more than {MAX_LINE_BYTES} bytes")
            yield line


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
