"""The last lines of the log, for whoever looks at the agent from elsewhere: /telemetry/log."""

from __future__ import annotations

import collections
import logging
from dataclasses import dataclass

from edge.console import one_line

MAX_LINES = 100
MAX_LINE_CHARACTERS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One record. time_s: since 1970. source: the module that wrote it."""

    time_s: float
    level: str
    source: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LogReport:
    """The content of /telemetry/log, oldest first."""

    lines: tuple[LogLine, ...]


class LogTail(logging.Handler):
    """Keeps the newest records of level INFO and above. May be used from any thread."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._lines: collections.deque[LogLine] = collections.deque(maxlen=MAX_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record; one whose arguments do not fit its text is reported as logging does."""
        try:
            text = one_line(record.getMessage())
        except (TypeError, ValueError):
            self.handleError(record)
            return
        if len(text) > MAX_LINE_CHARACTERS:
            text = text[: MAX_LINE_CHARACTERS - 1] + "…"
        self._lines.append(
            LogLine(
                time_s=round(record.created, 3),
                level=record.levelname.lower(),
                source=record.name,
                text=text,
            )
        )

    def report(self) -> LogReport:
        """Return what is kept."""
        self.acquire()
        try:
            return LogReport(lines=tuple(self._lines))
        finally:
            self.release()
