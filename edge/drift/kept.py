"""Rows that were asked and answered, as files: each is a capture of one request.

    FOLDER/MODEL/about.json             what the rows were compared with
    FOLDER/MODEL/steady/KEY.capture     of windows like the reference
    FOLDER/MODEL/drifted/KEY.capture    of others

All of it is for the owner only. Nothing is synced: what a power cut damages is one row.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from edge import __version__
from edge.capture.capture_file import VERSION as CAPTURE_VERSION
from edge.capture.capture_file import End, Exchange, Head, frame_bytes, read_capture
from edge.capture.redaction import redacted
from edge.drift.reading import Scores
from edge.errors import EdgeError, InputError, StorageError, UsageError
from edge.files import read_capped, storage_errors
from edge.oip import JSON_LENGTH_HEADER, InferRequest, WantedOutput, encode_infer, parse_infer
from edge.oip_client import infer_request, outputs_from_answer
from edge.spec import Feeds, TensorSpec, datatype_from_numpy

STEADY, DRIFTED = "steady", "drifted"
FOLDERS = (STEADY, DRIFTED)
MAX_ROW_BYTES = 8 << 20  # of the tensors of one row
ABOUT = "about.json"
_SUFFIX = ".capture"
_MAX_FILE_BYTES = 2 * MAX_ROW_BYTES + (1 << 20)
_MAX_ABOUT_BYTES = 16 << 20
_VERSION = 1


class About(msgspec.Struct, frozen=True, kw_only=True):
    """Whose rows these are.

    reference_sha256: of the reference that they were compared with. inputs, outputs: whose rows
    are kept. scores: which output holds a score for each class, with their names in labels.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of a request: arrays of shape (1, ...). when: Unix time.

    text: what was asked, if it was asked with a text. outputs: empty where they are not kept.
    """

    when: float
    feeds: Feeds
    outputs: Feeds
    text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRow:
    """A row from a file. is_drifted: whether it came in a window that differed."""

    row: Row
    is_drifted: bool


class _Asked(msgspec.Struct, frozen=True):
    text: tuple[str]


_ASKED = msgspec.json.Decoder(_Asked)
_ABOUT = msgspec.json.Decoder(About)


def bytes_from_row(row: Row, model: str, *, redact: Collection[str]) -> bytes | None:
    """Return the file of a row, without the contents of some inputs.

    None if there is no telling that they are gone, as in a text.
    """
    request = infer_request(model, row.feeds)
    headers, body, path = request.headers, request.body, request.path
    if row.text is not None:
        path, headers = f"/predict/{model}", {"Content-Type": "application/json"}
        body = msgspec.json.encode({"text": [row.text]})
    answer_headers, answer = _answer(row.outputs)
    exchange = Exchange(
        offset_s=0.0,
        method="POST",
        path=path,
        headers=headers,
        body=body,
        status=200,
        answer_headers=answer_headers,
        answer=answer,
        latency_s=0.0,
    )
    blank = redacted(exchange, redact, max_body_bytes=_MAX_FILE_BYTES)
    if blank is None:
        return None
    head = Head(
        version=CAPTURE_VERSION,
        created=datetime.fromtimestamp(row.when, timezone.utc).isoformat(timespec="milliseconds"),
        agent=__version__,
        share=1.0,
        redact=tuple(redact),
    )
    end = End(reason="stopped", dropped=0, unredactable=0)
    return frame_bytes(head) + frame_bytes(blank) + frame_bytes(end)


def row_from_bytes(content: bytes, *, redact: Collection[str]) -> Row | None:
    """Return the row of a file, without the contents of some inputs; None as above.

    Raises EdgeError for what is no such file.
    """
    capture = read_capture(io.BytesIO(content))
    if capture.problem is not None or len(capture.exchanges) != 1:
        raise InputError(capture.problem or "it does not hold one request")
    exchange = redacted(capture.exchanges[0], redact, max_body_bytes=_MAX_FILE_BYTES)
    if exchange is None:
        return None
    try:
        when = datetime.fromisoformat(capture.head.created).timestamp()
    except ValueError as error:
        raise InputError(f"its time cannot be read: {error}") from error
    answered = {name.lower(): value for name, value in exchange.answer_headers.items()}
    outputs = outputs_from_answer(answered, exchange.answer) if exchange.answer else None
    length = exchange.headers.get(JSON_LENGTH_HEADER)
    if length is None:
        try:
            (text,) = _ASKED.decode(exchange.body).text
        except msgspec.MsgspecError as error:
            raise InputError(f"its text cannot be read: {error}") from error
        return Row(when=when, feeds={}, outputs=outputs or {}, text=text)
    parsed = parse_infer(exchange.body, int(length), outputs=(), check=lambda *_: None)
    return Row(when=when, feeds=parsed.feeds, outputs=outputs or {})


class KeptFolder:
    """The rows of one model on disk."""

    def __init__(self, folder: Path, model: str) -> None:
        self.path = folder / model
        self._model = model

    def open(self, about: About) -> None:
        """Make the folder; rows that were compared with another reference are removed."""
        with storage_errors("write", self.path):
            with contextlib.suppress(EdgeError):
                if self.about().reference_sha256 == about.reference_sha256:
                    return
            shutil.rmtree(self.path, ignore_errors=True)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for path in (self.path, *(self.path / name for name in FOLDERS)):
                path.mkdir(mode=0o700, exist_ok=True)
            _write(self.path / ABOUT, msgspec.json.encode(about))

    def about(self) -> About:
        """Return whose rows these are.

        Raises UsageError if none are kept here, StorageError for what cannot be read.
        """
        path = self.path / ABOUT
        with storage_errors("read", path):
            if not path.is_file():
                raise UsageError(
                    f"no inputs of a model {self._model!r} are kept in {self.path.parent}; set "
                    "drift_keep_inputs of the agent, and give the folder of its drift_keep_folder"
                )
        try:
            about = _ABOUT.decode(read_capped(path, max_bytes=_MAX_ABOUT_BYTES))
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise StorageError(f"{path} is damaged: {error}; remove {self.path}") from error
        if about.version != _VERSION:
            raise StorageError(
                f"{path} has version {about.version}, this edge-agent reads {_VERSION}"
            )
        return about

    def keys(self, folder: str) -> Iterator[tuple[int, int]]:
        """Yield the key and the bytes of every row; what is left of a cut-off write is removed."""
        for path in (self.path / folder).iterdir():
            with contextlib.suppress(ValueError):
                if path.suffix == _SUFFIX:
                    yield int(path.stem, 16), path.stat().st_size
                    continue
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
                paths = sorted((self.path / folder).glob(f"*{_SUFFIX}"))
            for path in paths:
                try:
                    content = read_capped(path, max_bytes=_MAX_FILE_BYTES)
                except StorageError:
                    if path.exists():
                        raise
                    continue
                try:
                    row = row_from_bytes(content, redact=redact)
                except (EdgeError, ValueError):
                    row = None
                yield None if row is None else KeptRow(row=row, is_drifted=folder == DRIFTED)

    def _file(self, folder: str, key: int) -> Path:
        return self.path / folder / f"{key:014x}{_SUFFIX}"


def _answer(outputs: Feeds) -> tuple[dict[str, str], bytes]:
    if not outputs:
        return {}, b""
    specs = tuple(
        TensorSpec(name=name, datatype=datatype_from_numpy(array.dtype), shape=array.shape)
        for name, array in outputs.items()
    )
    wanted = tuple(WantedOutput(name=spec.name, binary=True) for spec in specs)
    response = encode_infer(
        outputs,
        InferRequest(id=None, feeds={}, wanted=wanted),
        model="",
        version="",
        outputs=specs,
    )
    return response.headers, response.body


def _write(path: Path, content: bytes) -> None:
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        partial.rename(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
