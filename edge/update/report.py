"""What a pass leaves behind for whoever asks later: ROOT/channel/status.json."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import msgspec

from edge.errors import EdgeError
from edge.files import atomic_write
from edge.update.one_pass import Outcome
from edge.update.status import (
    CHANNEL_FOLDER,
    STATUS_NAME,
    TIME_FORMAT,
    PassStatus,
    read_status,
)


def report_outcome(slots: Path, now: datetime, outcome: Outcome) -> None:
    """Keep how a pass ended; raises StorageError."""
    at = now.strftime(TIME_FORMAT)
    _write(
        slots,
        PassStatus(
            at=at,
            verdict=outcome.verdict,
            reason=outcome.warning or outcome.reason,
            release=outcome.release,
            fresh_until=outcome.fresh_until,
            good_at=at,
            override=outcome.override or _override_before(read_status(slots), outcome),
        ),
    )


def report_failure(slots: Path, now: datetime, error: EdgeError) -> None:
    """Keep why a pass failed, and since when nothing has been proved; raises StorageError."""
    before = read_status(slots)
    _write(
        slots,
        PassStatus(
            at=now.strftime(TIME_FORMAT),
            verdict="failed",
            reason=str(error),
            code=error.code,
            fresh_until=None if before is None else before.fresh_until,
            good_at=None if before is None else before.good_at,
            override=None if before is None else before.override,
        ),
    )


def _override_before(before: PassStatus | None, outcome: Outcome) -> str | None:
    """Return by what override the release that is in service still came here."""
    if before is None or outcome.verdict != "current" or outcome.release is None:
        return None
    is_same = before.release is None or before.release.id == outcome.release.id
    return before.override if is_same else None


def _write(slots: Path, status: PassStatus) -> None:
    content = msgspec.json.format(msgspec.json.encode(status, order="sorted"), indent=1)
    atomic_write(slots / CHANNEL_FOLDER / STATUS_NAME, content + b"\n")
