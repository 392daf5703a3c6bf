"""Latency over throughput as an SVG of our own: no library, readable on light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple
from xml.sax.saxutils import escape

from edge.bench.measurements import Point

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 90, 50, 60
# Colours that keep a contrast of 3 to white and to near-black alike.
SERIES = (
    ("p50", "p50_ms", "#2a78d6"),
    ("p90", "p90_ms", "#1b8a5a"),
    ("p99", "p99_ms", "#c2680c"),
    ("p99.9", "p999_ms", "#d0408f"),
)
_STYLE = """
    :root { color-scheme: light dark; --ink: #1f2328; --soft: #8b949e; --page: #ffffff; }
    @media (prefers-color-scheme: dark) {
      :root { --ink: #e6edf3; --soft: #7d8590; --page: #0d1117; }
    }
    text { font: 12px system-ui, sans-serif; fill: var(--ink); }
    .title { font-size: 15px; font-weight: 600; }
    .page { fill: var(--page); }
    .grid { stroke: var(--soft); stroke-opacity: 0.35; }
    .line { fill: none; stroke-width: 2; }
"""


class _Spot(NamedTuple):
    x: float
    y: float
    load: str
    ms: float


class _Label(NamedTuple):
    x: float
    y: float
    name: str
    colour: str


def svg_from_points(points: tuple[Point, ...], title: str) -> str:
    """Return a drawing of the latency percentiles (log scale) over requests per second.

    Closed loops are joined by lines, in the order of their connections, open loops by dashes.
    """
    answered = sorted(
        (p for p in points if p.latency is not None), key=lambda p: p.connections or p.offered or 0
    )
    values = [value for point in answered for _, value in _percentiles(point)]
    right = _nice(max((point.requests_per_s for point in answered), default=1.0))
    low, high = _decades(values)

    def x(per_s: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * per_s / right

    def y(ms: float) -> float:
        share = (math.log10(ms) - low) / (high - low)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title, {chr(34): "&quot;"})}">',
        f"<style>{_STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{HEIGHT}"/>',
        f'<text class="title" x="{LEFT}" y="26">{escape(title)}</text>',
    ]
    for ms in _log_ticks(low, high):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" '
                     f'y1="{y(ms):.1f}" y2="{y(ms):.1f}"/>')  # fmt: skip
        parts.append(_text(LEFT - 8, y(ms) + 4, f"{ms:g}", "end"))
    for step in range(6):
        per_s = right * step / 5
        parts.append(_text(x(per_s), HEIGHT - BOTTOM + 18, f"{per_s:g}", "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "requests per second", "middle"))
    parts.append(_text(LEFT, TOP - 8, "latency, ms (log)", "start"))
    labels: list[_Label] = []
    for name, key, colour in SERIES:
        for is_open in (False, True):
            drawn = [
                _Spot(x(point.requests_per_s), y(value), point.title, value)
                for point in answered
                for which, value in _percentiles(point)
                if which == key and (point.offered is not None) == is_open
            ]
            parts += _series(drawn, name, colour, dashed=is_open)
            if drawn and (not is_open or not any(label.name == name for label in labels)):
                labels.append(_Label(drawn[-1].x, drawn[-1].y, name, colour))
    parts += _labels(labels)
    for place, point in enumerate(answered):
        height = HEIGHT - BOTTOM + 32 + 10 * (place % 2)
        parts.append(_text(x(point.requests_per_s), height, point.title, "middle", size=9))
    return "\n".join([*parts, "</svg>", ""])


def _series(spots: list[_Spot], name: str, colour: str, *, dashed: bool) -> Iterator[str]:
    if len(spots) > 1:
        path = " ".join(f"{spot.x:.1f},{spot.y:.1f}" for spot in spots)
        dash = ' stroke-dasharray="6 4"' if dashed else ""
        yield f'<polyline class="line" stroke="{colour}"{dash} points="{path}"/>'
    for spot in spots:
        yield (
            f'<circle cx="{spot.x:.1f}" cy="{spot.y:.1f}" r="4" fill="{colour}">'
            f"<title>{name}, {escape(spot.load)}: {spot.ms:.3g} ms</title></circle>"
        )


def _percentiles(point: Point) -> Iterator[tuple[str, float]]:
    for _, key, _ in SERIES:
        value = getattr(point.latency, key, None)
        if value is not None and value > 0:
            yield key, value


def _labels(labels: list[_Label]) -> Iterator[str]:
    """Yield the names of the lines beside their ends, moved apart where they would touch."""
    below = math.inf
    for label in sorted(labels, key=lambda label: -label.y):
        below = min(label.y + 4, below - 13)
        yield _text(label.x + 9, below, label.name, "start", colour=label.colour)


def _text(
    x: float,
    y: float,
    text: str,
    anchor: str,
    *,
    colour: str | None = None,
    size: int | None = None,
) -> str:
    style = "" if colour is None else f"fill: {colour};"
    style += "" if size is None else f"font-size: {size}px;"
    shown = f' style="{style}"' if style else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{shown}>{escape(text)}</text>'


def _nice(value: float) -> float:
    """Return the next of 1, 2, 5, 10, ... times a power of ten."""
    power = 10.0 ** math.floor(math.log10(max(value, 1e-9)))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value)


def _decades(values: list[float]) -> tuple[float, float]:
    if not values:
        return 0.0, 1.0
    low = math.log10(min(values)) - 0.1
    high = math.log10(max(values)) + 0.1
    middle, half = (low + high) / 2, max((high - low) / 2, 0.35)
    return middle - half, middle + half


def _log_ticks(low: float, high: float) -> Iterator[float]:
    for decade in range(math.floor(low), math.ceil(high) + 1):
        for step in (1, 2, 5):
            if low <= math.log10(step) + decade <= high:
                yield step * 10.0**decade
