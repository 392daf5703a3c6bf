"""Why trials were committed or rolled back: the last reports, for people and for the fleet."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from edge.errors import os_reason
from edge.slots.filesystem import Filesystem
from edge.slots.layout import write_durably
from edge.slots.state import SlotsState

logger = logging.getLogger(__name__)

MAX_REPORTS = 20


def keep_report(disk: Filesystem, folder: Path, state: SlotsState, report: object) -> None:
    """Keep the outcome that a state ends with, and the report that led to it; drop old ones.

    What has happened has happened: if there is no room for its report, the log says so.
    """
    try:
        _write(disk, folder, state, report)
    except OSError as error:
        logger.warning("no report in %s: %s", folder, os_reason(error))
    except UnicodeEncodeError as error:  # a path in it is no UTF-8
        logger.warning("no report in %s: %s", folder, error)


def _write(disk: Filesystem, folder: Path, state: SlotsState, report: object) -> None:
    outcome = state.last
    assert outcome is not None  # noqa: S101 - whatever changed has one
    content = {
        "change": state.changes,
        "bundle": outcome.bundle,
        "result": outcome.result,
        "reason": outcome.reason,
        "report": report,
    }
    encoded = msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n"
    write_durably(disk, folder / f"{outcome.bundle.id[:16]}.{state.changes}.json", encoded)
    for name in disk.names(folder):
        number = name.split(".")[1] if name.count(".") == 2 else ""
        if number.isdecimal() and int(number) <= state.changes - MAX_REPORTS:
            disk.remove(folder / name)
