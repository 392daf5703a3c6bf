"""Tables of a fleet for a terminal: the worst first, and readable at 80 columns.

Everything is text, never markup, and what devices say was made plain before (`terminal.plain`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from host_tools.fleet.changes import Change, Stretch, severity
from host_tools.fleet.polling import STATES, DeviceStatus, State
from host_tools.terminal import MAX_TEXT, plain

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

COLOURS: dict[State, str] = {
    "ok": "green", "degraded": "yellow", "not-ready": "yellow", "malformed": "red",
    "timeout": "red", "unreachable": "red",
}  # fmt: skip
_WIDE, _WIDEST = 100, 124  # columns from which more has room
_MOST_REASON = 120  # characters of a reason in a narrow table; --json has all of it


def status_table(statuses: Sequence[DeviceStatus], *, width: int, most: int | None = None) -> Table:
    """Return a row for each device, the worst first; the first `most` of them if that is given."""
    from rich.text import Text

    is_all_well = all(status.reason is None for status in statuses)
    is_narrow, table = width < _WIDE, _table()
    table.add_column("device", overflow="fold", max_width=16 if is_narrow else 24)
    table.add_column("state", no_wrap=True)
    table.add_column("bundle", overflow="fold", max_width=12 if is_narrow else 20)
    table.add_column("p95 ms", justify="right", no_wrap=True)
    figures = ("gpu %", "°C", "W") if width >= _WIDEST or is_all_well else (
        () if is_narrow else ("gpu %",))  # fmt: skip
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    if not is_all_well:
        table.add_column("what is wrong", overflow="fold", ratio=1)
    for status in sorted(statuses, key=severity)[:most]:
        facts = status.facts
        values = {
            "gpu %": _number(facts.gpu_percent if facts else None),
            "°C": _number(facts.hottest_celsius if facts else None),
            "W": _number(facts.power_watts if facts else None, 1),
        }
        cells = [
            Text(status.device),
            Text(status.state, style=COLOURS[status.state]),
            Text((facts.bundle if facts else None) or ""),
            Text(_number(facts.p95_ms if facts else None, 1)),
            *(Text(values[name]) for name in figures),
        ]
        reason = plain(status.reason or "", _MOST_REASON if is_narrow else MAX_TEXT)
        table.add_row(*cells, *(() if is_all_well else (Text(reason),)))
    return table


def summary_of(statuses: Sequence[DeviceStatus]) -> str:
    """Return how many devices are how, and which bundles they serve, in one line."""
    counts = Counter(status.state for status in statuses)
    states = ", ".join(f"{counts[state]} {state}" for state in reversed(STATES) if counts[state])
    noun = "device" if len(statuses) == 1 else "devices"
    line = f"{len(statuses)} {noun}: {states}" if statuses else "no devices"
    bundles = Counter(s.facts.bundle for s in statuses if s.facts and s.facts.bundle)
    if len(bundles) > 1:
        told = [f"{name} on {count}" for name, count in bundles.most_common(3)]
        rest = len(bundles) - len(told)
        line += "; bundles: " + ", ".join(told) + (f", and {rest} more" if rest > 0 else "")
    return line


def watch_view(
    statuses: Sequence[DeviceStatus], changes: Sequence[Change], *, width: int, height: int
) -> RenderableType:
    """Return what fits on a screen: the summary, the worst devices, the latest changes."""
    from rich.console import Group
    from rich.text import Text

    shown = changes[-max(2, height // 4) :]
    # A reason may wrap, so a bad device counts as three lines; four lines are heads and spaces.
    left, most = height - len(shown) - 5, 0
    for status in sorted(statuses, key=severity):
        left -= 1 if status.reason is None else 3
        if left < 0:
            break
        most += 1
    at = _time(max((status.time_s for status in statuses), default=0.0))[11:]
    summary = Text(f"{at} {summary_of(statuses)}", no_wrap=True, overflow="ellipsis")
    parts: list[RenderableType] = [summary]
    parts.append(status_table(statuses, width=width, most=most))
    if most < len(statuses):
        parts.append(Text(f"and {len(statuses) - most} more, none of them worse", style="dim"))
    if shown:
        parts.append(Text(""))
        parts += [Text(line_of(change), no_wrap=True, overflow="ellipsis") for change in shown]
    return Group(*parts)


def stretch_table(stretches: Sequence[Stretch]) -> Table:
    """Return a row for each stretch of one device."""
    from rich.text import Text

    table = _table()
    for name in ("from (UTC)", "for", "state"):
        table.add_column(name, no_wrap=True)
    table.add_column("bundle", overflow="fold", max_width=12)
    table.add_column("p95 ms", justify="right", no_wrap=True)
    table.add_column("what was wrong", overflow="fold", ratio=1)
    for stretch in stretches:
        table.add_row(
            _time(stretch.begin_s)[:16],
            _span(stretch.end_s - stretch.begin_s),
            Text(stretch.state, style=COLOURS.get(stretch.state, "")),
            Text(stretch.bundle or ""),
            Text(_number(stretch.p95_ms, 1)),
            Text(stretch.reason or ""),
        )
    return table


def line_of(change: Change) -> str:
    """Return a change in one line."""
    return f"{_time(change.time_s)[11:]} {change.device} {change.detail}"


def _table() -> Table:
    from rich.table import Table

    return Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")


def _number(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _time(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")


def _span(seconds: float) -> str:
    """Return how long something took, with two units at most."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days} d {h} h"
    if hours:
        return f"{hours} h {m} min"
    return f"{m} min {s} s" if m else f"{s} s"
