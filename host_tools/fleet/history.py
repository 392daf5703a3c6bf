"""What every poll saw, kept in a SQLite file of this desk: bounded, and never written over another.

The header of the file is looked at before SQLite opens it, so that a file of another program, or
of a newer edge-kit, stays as it is.
"""

from __future__ import annotations

import contextlib
import sqlite3
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from pathlib import Path

import msgspec

from edge.errors import EdgeError, os_reason
from edge.files import open_regular, storage_errors
from host_tools.fleet.answers import Facts
from host_tools.fleet.polling import DeviceStatus, State
from host_tools.fleet.readings import Readings, joined, readings_from_rows

SCHEMA = 1
KEEP_DAYS = 14.0
MAX_ROWS = 2_000_000  # about 1 GB
LOCK_S = 10.0
_APPLICATION_ID = 0x45444746  # "EDGF", which SQLite keeps in the header for whose file it is
_MAGIC = b"SQLite format 3\0"
_HEADER_BYTES = 100
_TABLE = """
CREATE TABLE IF NOT EXISTS polls (
    time_s REAL NOT NULL, device TEXT NOT NULL, url TEXT NOT NULL, state TEXT NOT NULL,
    reason TEXT, answer_ms REAL, facts TEXT,
    PRIMARY KEY (device, time_s)
) WITHOUT ROWID
"""
_INDEX = "CREATE INDEX IF NOT EXISTS polls_by_time ON polls (time_s)"
_COLUMNS = "time_s, device, url, state, reason, answer_ms, facts"
_DEFAULTS = {name: getattr(Facts(), name) for name in (field.name for field in fields(Facts))}
_ROWS_AT_ONCE = 20_000  # about 10 MB
_ROW = msgspec.json.Decoder(Facts)


class HistoryError(EdgeError):
    """The history of polls cannot be opened, read or written."""

    code = "fleet-history"
    exit_code = 3


def default_path(home: Path | None = None) -> Path:
    """Return where the history lies if nobody says otherwise: the user's folder for state."""
    return (home or Path.home()) / ".local" / "state" / "edge-kit" / "fleet.sqlite"


class PollHistory:
    """An open history; make it with `open`. For one thread; other processes may write beside it.

    keep_days: older polls are deleted when others are added. now: Unix time.
    """

    def __init__(
        self,
        path: Path,
        connection: sqlite3.Connection,
        *,
        keep_days: float,
        now: Callable[[], float],
    ) -> None:
        self.path = path
        self._connection = connection
        self._keep_s = keep_days * 86400.0
        self._now = now

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        keep_days: float = KEEP_DAYS,
        create: bool = True,
        now: Callable[[], float] = time.time,
    ) -> PollHistory:
        """Open a history, or begin one where nothing is and create says so.

        Raises HistoryError for a file that is none, is newer, or is damaged.
        """
        is_new = _is_new(path)
        if is_new and not create:
            raise HistoryError(f"there is no history at {path}; `edge-kit fleet status` writes one")
        if is_new and path == default_path():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise HistoryError(
                    f"no folder can be made for the history {path}: {os_reason(error)}; give "
                    "--history or --no-history"
                ) from error
        with _errors_of(path):
            connection = sqlite3.connect(path, timeout=LOCK_S, isolation_level=None)
            try:
                if is_new:
                    _begin(connection)
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.execute(f"SELECT {_COLUMNS} FROM polls LIMIT 1").fetchall()  # noqa: S608
            except BaseException:
                connection.close()
                raise
        return cls(path, connection, keep_days=keep_days, now=now)

    def __enter__(self) -> PollHistory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, statuses: Iterable[DeviceStatus]) -> None:
        """Keep what a poll saw, all of it or nothing, and delete what is too old or too much."""
        rows = [
            (s.time_s, s.device, s.url, s.state, s.reason, s.answer_ms, _text_of(s.facts))
            for s in statuses
        ]
        with _errors_of(self.path), _transaction(self._connection) as cursor:
            cursor.executemany(
                f"INSERT OR REPLACE INTO polls ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
                rows,
            )
            cursor.execute("DELETE FROM polls WHERE time_s < ?", (self._now() - self._keep_s,))
            cursor.execute(
                "DELETE FROM polls WHERE time_s < "
                "(SELECT time_s FROM polls ORDER BY time_s DESC LIMIT 1 OFFSET ?)",
                (MAX_ROWS - 1,),
            )

    def polls(self, *, since_s: float, device: str | None = None) -> Iterator[DeviceStatus]:
        """Yield what was seen since a Unix time, oldest first; of all devices, or of one."""
        which = "" if device is None else "AND device = ?"
        values = (since_s,) if device is None else (since_s, device)
        question = f"SELECT {_COLUMNS} FROM polls WHERE time_s >= ? {which} ORDER BY time_s"  # noqa: S608
        with _errors_of(self.path):
            for row in self._connection.execute(question, values):
                yield _status(*row)

    def first_s(self, device: str, *, since_s: float) -> float | None:
        """Return when a device was first seen since a Unix time, None if it was not."""
        question = "SELECT min(time_s) FROM polls WHERE device = ? AND time_s >= ?"
        with _errors_of(self.path):
            ((found,),) = self._connection.execute(question, (device, since_s))
        return None if found is None else float(found)

    def last(
        self, device: str, *, since_s: float, until_s: float, is_told: bool = False
    ) -> DeviceStatus | None:
        """Return the last that was seen of a device between two times; is_told: with facts."""
        which = "AND facts IS NOT NULL" if is_told else ""
        question = (
            f"SELECT {_COLUMNS} FROM polls WHERE device = ? AND time_s BETWEEN ? AND ? {which} "  # noqa: S608
            "ORDER BY time_s DESC LIMIT 1"
        )
        with _errors_of(self.path):
            row = self._connection.execute(question, (device, since_s, until_s)).fetchone()
            return None if row is None else _status(*row)

    def readings(self, device: str, *, since_s: float, until_s: float) -> Readings:
        """Return the figures in a device's polls between two times; much faster than `polls`."""
        question = (
            "SELECT time_s, state, facts FROM polls WHERE device = ? AND time_s BETWEEN ? AND ? "
            "ORDER BY time_s"
        )
        with _errors_of(self.path):
            found = self._connection.execute(question, (device, since_s, until_s))
            parts = [readings_from_rows(())]
            while rows := found.fetchmany(_ROWS_AT_ONCE):
                parts.append(readings_from_rows(rows))
        return joined(parts)

    def devices(self) -> tuple[str, ...]:
        """Return the names of all devices that something is known of."""
        with _errors_of(self.path):
            found = self._connection.execute("SELECT DISTINCT device FROM polls ORDER BY device")
            return tuple(name for (name,) in found)

    def close(self) -> None:
        """Close the file; calling it twice does nothing."""
        self._connection.close()


def _status(
    time_s: float,
    device: str,
    url: str,
    state: State,
    reason: str | None,
    answer_ms: float | None,
    facts: str | None,
) -> DeviceStatus:
    return DeviceStatus(
        device=device,
        url=url,
        state=state,
        reason=reason,
        time_s=time_s,
        answer_ms=answer_ms,
        facts=None if facts is None else _ROW.decode(facts),
    )


def _is_new(path: Path) -> bool:
    """Return whether a history would begin at path; raises HistoryError for what is none."""
    if not path.exists():
        return True
    with storage_errors("read", path), open_regular(path, follow_links=True) as file:
        header = file.read(_HEADER_BYTES)
    if not header:
        return True
    away = "give another --history, or move it away"
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
        raise HistoryError(f"{path} is no SQLite file, so no history; {away}")
    version, application = struct.unpack(">I", header[60:64]), struct.unpack(">I", header[68:72])
    if application != (_APPLICATION_ID,):
        raise HistoryError(f"{path} is a SQLite file of another program; {away}")
    if version != (SCHEMA,):
        raise HistoryError(
            f"{path} has schema {version[0]}, this edge-kit knows {SCHEMA}; upgrade it, or {away}"
        )
    return False


def _begin(connection: sqlite3.Connection) -> None:
    with _transaction(connection) as cursor:
        # Whose file it is comes with the table, or not at all.
        cursor.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        cursor.execute(f"PRAGMA user_version = {SCHEMA}")
        cursor.execute(_TABLE)
        cursor.execute(_INDEX)


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Cursor]:
    cursor = connection.cursor()
    cursor.execute("BEGIN IMMEDIATE")
    try:
        yield cursor
    except BaseException:
        cursor.execute("ROLLBACK")
        raise
    cursor.execute("COMMIT")


@contextlib.contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise HistoryError(f"the history {path}: {error}") from error
    except (sqlite3.Error, msgspec.MsgspecError) as error:
        raise HistoryError(
            f"the history {path} is damaged: {error}; move it away, and a new one begins"
        ) from error


def _text_of(facts: Facts | None) -> str | None:
    """Return facts as JSON, without those that say nothing."""
    if facts is None:
        return None
    told = {name: getattr(facts, name) for name in _DEFAULTS}
    kept = {name: value for name, value in told.items() if value != _DEFAULTS[name]}
    return msgspec.json.encode(kept).decode()
