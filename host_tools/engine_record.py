"""What `edge-kit build` leaves in its folder for `edge-kit pack`: engines, graphs, one record each.

A record is written after the files it names, so a build that was killed leaves no false promise.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge.chat.spec import DecoderSpec
from edge.errors import UsageError
from edge.files import atomic_write, read_capped, sha256_of
from edge.manifest import Backend, EngineFacts, Precision

RECORD_SUFFIX = ".record.json"
_MAX_RECORD_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRecord:
    """One variant: an engine, or, without `engine`, a graph to build one from on the device.

    source_sha256: of the fp32 model that all of it comes from. file, sha256: the engine or graph,
    beside the record. graph: what it was or will be built from; weights: of that graph, where they
    are not inside it. typed, build_for, decoder: as in manifest.Variant. pieces: of a chat model in
    pieces, the files beside `file`, weights first; sha256 is that of `file`, which names no others.
    """

    id: str
    backend: Backend
    precision: Precision
    source_sha256: str
    file: str
    sha256: str
    graph: str
    engine: EngineFacts | None = None
    typed: bool | None = None
    build_for: tuple[str, ...] = ()
    weights: str | None = None
    decoder: DecoderSpec | None = None
    pieces: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFile:
    """An engine in the folder, and what it was built for."""

    file: str
    sha256: str
    facts: EngineFacts


def write_file(folder: Path, name: str, content: bytes) -> str:
    """Write a file of the folder and return its digest."""
    atomic_write(folder / name, content)
    return hashlib.sha256(content).hexdigest()


def write_record(folder: Path, record: EngineRecord) -> Path:
    """Write a record beside the file it names and return its path."""
    path = folder / f"{record.id}{RECORD_SUFFIX}"
    atomic_write(path, msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
    return path


def read_record(path: Path) -> EngineRecord | None:
    """Return the record, or None if there is no such file; raises UsageError if it is none."""
    if not path.is_file():
        return None
    try:
        return msgspec.json.decode(
            read_capped(path, max_bytes=_MAX_RECORD_BYTES, follow_links=True), type=EngineRecord
        )
    except msgspec.MsgspecError as error:
        raise UsageError(f"{path} is no engine record: {error}; build again") from error


def records_in(folder: Path, source: Path) -> tuple[EngineRecord, ...]:
    """Return the records of a folder, by id, after checking the files that they name.

    Raises UsageError for an empty folder, for a file that is missing or was changed, and for
    records that were built from another model than source.
    """
    return records_of(folder, sha256_of(source, follow_links=True)[0], str(source))


def records_of(folder: Path, source_sha256: str, source: str) -> tuple[EngineRecord, ...]:
    """Return the records of a folder as `records_in`, for a source of this digest and name."""
    paths = sorted(folder.glob(f"*{RECORD_SUFFIX}"))
    if not paths:
        raise UsageError(f"no engines in {folder}; `edge-kit build --out {folder}` writes some")
    records = []
    for path in paths:
        record = read_record(path)
        assert record is not None  # noqa: S101 - it was listed a moment ago
        if record.source_sha256 != source_sha256:
            raise UsageError(f"{path} was built from another model than {source}; build it again")
        file = folder / record.file
        for name in (record.graph, record.weights, *record.pieces):
            if name is not None and not (folder / name).is_file():
                raise UsageError(f"{folder / name} is missing; build {record.id} again")
        if not file.is_file() or sha256_of(file, follow_links=True)[0] != record.sha256:
            raise UsageError(f"{file} is not the file that {path.name} names; build it again")
        records.append(record)
    return tuple(records)
