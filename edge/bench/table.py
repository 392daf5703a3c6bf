"""A plain table of aligned columns, no wider than a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

MAX_COLUMNS = 80
_GAP = "  "


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return lines of MAX_COLUMNS at most: the first column to the left, the others to the right.

    The first column is cut, in its middle, where everything does not fit. A heading may have
    several lines.
    """
    split = [heading.split("\n") for heading in headings]
    depth = max(map(len, split))
    lines = [[""] * (depth - len(parts)) + parts for parts in split]
    heads = [[parts[i] for parts in lines] for i in range(depth)]
    cells = [*heads, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headings))]
    widths[0] = min(widths[0], MAX_COLUMNS - sum(widths[1:]) - len(_GAP) * (len(widths) - 1))
    rule = ["-" * width for width in widths]
    return "\n".join(
        _GAP.join(
            cell.rjust(width) if column else shortened(cell, width).ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (*heads, rule, *rows)
    )


def shortened(text: str, width: int) -> str:
    """Return text of that width at most, its middle left out: names differ at their ends."""
    if len(text) <= width:
        return text
    half = (width - 2) // 2
    return text[:half] + ".." + text[len(text) - (width - 2 - half) :]


def number(value: float | None, digits: int = 3) -> str:
    """Return so many significant digits, "-" for None."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    size = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    if size == 0:
        return f"{value:.{digits}g}" if abs(value) < 1e-3 else f"{value:.{digits}f}"
    return f"{value:,.{max(0, digits - size)}f}"


def percent(share: float | None) -> str:
    """Return a share in percent, "-" for None."""
    return "-" if share is None else f"{100 * share:.0f}%"


def mebibytes(size: int | None) -> str:
    """Return bytes in MiB, "-" for None."""
    return "-" if size is None else f"{size / (1 << 20):,.0f}"


def wrapped(line: str, *, indent: str = "") -> str:
    """Return a line broken at MAX_COLUMNS."""
    return "\n".join(textwrap.wrap(line, MAX_COLUMNS, subsequent_indent=indent)) or line
