"""The small text files in which a kernel says what a machine is and does: /sys, /proc, /etc."""

from __future__ import annotations

import re
from pathlib import Path

MAX_TEXT_BYTES = 1 << 20


def text_of(path: Path, *, max_bytes: int = MAX_TEXT_BYTES) -> str | None:
    """Return the first max_bytes of a file without NUL and newline at the end.

    None if it is empty, missing, or cannot be read now, as the sensor of a block that is off.
    """
    try:
        with path.open("rb") as file:
            return file.read(max_bytes).decode("utf-8", "replace").rstrip("\0\n") or None
    except OSError:
        return None


def number_of(path: Path) -> int | None:
    """Return the whole number in a file, None if there is none that can be read."""
    text = (text_of(path, max_bytes=64) or "").strip()
    return int(text) if re.fullmatch(r"-?\d{1,18}", text, re.ASCII) else None
