"""Files on the device: whole or not there, links that switch at once, files from a stream."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, BinaryIO, Dict, Optional

Json = Dict[str, Any]

DONE, SAID_NO, USAGE, ENVIRONMENT, NEEDS = 0, 1, 2, 3, 4
MAX_LINE_BYTES = 64 << 10
MAX_TEXT_BYTES = 16 << 20
CHUNK_BYTES = 1 << 20
MAX_LINKS = 40
# Left free by what is received, for the system's own files.
SPARE_BYTES = 64 << 20
_PLAIN = re.compile(r"[A-Za-z0-9._+-]+(/[A-Za-z0-9._+-]+)*")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class StopError(Exception):
    """The end of a run before its last step: the state to report, the reason, the exit code."""

    def __init__(self, state: str, reason: str, exit_code: int = SAID_NO, **more: Any) -> None:
        super().__init__(reason)
        self.state, self.exit_code, self.more = state, exit_code, more


def receive(payload: Path, stream: BinaryIO, *, spare_bytes: int = SPARE_BYTES) -> int:
    """Write the files that come in stream below payload; return how many became whole.

    Each is a line of JSON with path, size, sha256 and offset, then the bytes from there on. One
    that is cut stays as NAME.part, which the next try continues.
    """
    count = 0
    while True:
        line = stream.readline(MAX_LINE_BYTES)
        if not line:
            return count
        try:
            head = json.loads(line.decode())
            size, offset = int(head["size"]), int(head["offset"])
            path, digest = inside(payload, head["path"]), str(head["sha256"])
        except (ValueError, KeyError, TypeError) as error:
            raise StopError("failed", "no head of a file: {!r}".format(error), USAGE) from error
        path.parent.mkdir(parents=True, exist_ok=True)
        part = part_of(path)
        if offset != received_bytes(path) and offset:
            raise StopError("failed", "{} does not end at byte {}".format(part, offset))
        if free_bytes(payload) < size - offset + spare_bytes:
            raise StopError("refused", "{}: no space for {}".format(payload, head["path"]))
        _append(part, stream, offset, size)
        if digest_of(part) != digest:
            part.unlink()
            raise StopError("failed", "{} has other bytes than its digest".format(head["path"]))
        part.replace(path)
        sync(path.parent)
        count += 1


def _append(part: Path, stream: BinaryIO, offset: int, size: int) -> None:
    with part.open("ab" if offset else "wb") as file:
        try:
            while offset < size:
                chunk = stream.read(min(CHUNK_BYTES, size - offset))
                if not chunk:
                    raise StopError("failed", "{} was cut at byte {}".format(part.stem, offset))
                file.write(chunk)
                offset += len(chunk)
        finally:
            file.flush()
            os.fsync(file.fileno())


def part_of(path: Path) -> Path:
    """Return where a file is kept while it is not whole."""
    return path.with_name(path.name + ".part")


def received_bytes(path: Path) -> int:
    """Return how much of a file has come so far."""
    try:
        return part_of(path).stat().st_size
    except FileNotFoundError:
        return 0


def inside(folder: Path, name: Any) -> Path:
    """Return folder/name; raises StopError if name is no text, or could lead out of it."""
    if (
        not isinstance(name, str)
        or not _PLAIN.fullmatch(name)
        or {".", ".."} & set(name.split("/"))
    ):
        raise StopError("refused", "{!r} is no path of a payload".format(name), USAGE)
    return folder / str(name)


def resolved(root: Path, name: str) -> Path:
    """Return where root/name leads for who has root as its /: no link leads out of it.

    Raises StopError if its links have no end.
    """
    place, left, links = root, name.split("/"), 0
    while left:
        part = left.pop(0)
        if part == "..":
            place = place if place == root else place.parent
        elif part not in ("", "."):
            target = linked(place / part)
            if target is None:
                place = place / part
                continue
            links += 1
            if links > MAX_LINKS:
                raise StopError("refused", "{}: its links have no end".format(root / name))
            place = root if target.startswith("/") else place
            left = target.split("/") + left
    return place


def is_whole(folder: Path, file: Json) -> bool:
    """Return whether a listed file is there with its size and digest."""
    path = inside(folder, file["path"])
    return path.is_file() and path.stat().st_size == file["size"] and is_digest(path, file)


def is_digest(path: Path, file: Json) -> bool:
    """Return whether a file's content is what its entry says."""
    return _DIGEST.fullmatch(file["sha256"]) is not None and digest_of(path) == file["sha256"]


def digest_of(path: Path) -> Optional[str]:
    """Return the sha256 of a file, None if there is none."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            for chunk in iter(lambda: file.read(CHUNK_BYTES), b""):
                digest.update(chunk)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return digest.hexdigest()


def write(path: Path, content: bytes, *, mode: int = 0o644) -> bool:
    """Write a file at once and durably; return False if it has this content already."""
    if not path.is_symlink() and path.is_file() and path.read_bytes() == content:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=str(path.parent), prefix="." + path.name + ".")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(name).replace(path)
    except OSError:
        Path(name).unlink()
        raise
    sync(path.parent)
    return True


def link(path: Path, target: str) -> bool:
    """Make path a link to target at once; return False if it is one already."""
    if linked(path) == target:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name("." + path.name + ".new")
    remove(new)
    new.symlink_to(target)
    new.replace(path)
    sync(path.parent)
    return True


def linked(path: Path) -> Optional[str]:
    """Return where a link leads, None if path is none."""
    return os.readlink(str(path)) if path.is_symlink() else None


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(str(path))
    elif path.is_symlink() or path.exists():
        path.unlink()


def sync(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(str(folder), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def text_of(path: Path) -> Optional[str]:
    """Return a small text file's content, None if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_TEXT_BYTES).decode("utf-8", "replace").rstrip("\0\n")
    except OSError:
        return None


def free_bytes(path: Path) -> int:
    """Return the space where path is, or would be made."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(str(path)).free
