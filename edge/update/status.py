"""How the last pass of an update ended: ROOT/channel/status.json, read by whoever asks later."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from edge.errors import StorageError
from edge.files import read_capped
from edge.update.channel import Release

CHANNEL_FOLDER = "channel"  # below the root of the slots
STATUS_NAME = "status.json"
MAX_STATUS_BYTES = 64 << 10
TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True, slots=True, kw_only=True)
class PassStatus:
    """How the last pass ended. code: of the error, if there was one.

    at, fresh_until, good_at: in TIME_FORMAT. good_at: when a pass last proved that the channel is
    current, None if none ever did. override: that an older release was allowed, by whom and why;
    it stays while that release is in service.
    """

    at: str
    verdict: str
    reason: str
    release: Release | None = None
    fresh_until: str | None = None
    good_at: str | None = None
    code: str | None = None
    override: str | None = None


def read_status(slots: Path) -> PassStatus | None:
    """Return how the last pass ended; None if there was none, or its file cannot be read."""
    path = slots / CHANNEL_FOLDER / STATUS_NAME
    if not path.is_file():
        return None
    try:
        return msgspec.json.decode(read_capped(path, max_bytes=MAX_STATUS_BYTES), type=PassStatus)
    except (StorageError, msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None  # it is only a report, and the next one replaces it


def unix_s(at: str | None) -> float | None:
    """Return a time in TIME_FORMAT as seconds since 1970, None for what is none."""
    try:
        return datetime.strptime(at or "", TIME_FORMAT).replace(tzinfo=timezone.utc).timestamp()
    except ValueError:
        return None
