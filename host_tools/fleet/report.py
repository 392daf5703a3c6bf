"""The page about a fleet: one HTML file that opens without a network, in the agent page's look."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from importlib.resources import files

import jinja2

from edge import __version__
from host_tools.fleet.figures import BINS, FleetFigures, Series

PLOT_WIDTH, PLOT_HEIGHT = 960, 200
LINE_WIDTH, LINE_HEIGHT = 120, 24
UNKNOWN = "\N{EN DASH}"
# Worst first; a device that was never asked is the last but those that are well.
_ORDER = ("unreachable", "timeout", "malformed", "not-ready", "degraded", None, "ok")
_TONES = {"ok": "good", "degraded": "warn", "not-ready": "warn", None: "soft"}


def page_from(fleet: FleetFigures) -> str:
    """Return the page; everything that a device said is escaped."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        number=_number,
        round_number=_round_number,
        share=_share,
        time=_time,
        points=_points,
        tone=_tone,
        count=_count,
    )
    environment.globals["UNKNOWN"] = UNKNOWN
    here = files("host_tools.fleet").joinpath("report.html")
    template = environment.from_string(here.read_text(encoding="utf-8"))
    devices = sorted(fleet.devices, key=lambda one: (_ORDER.index(one.state), one.device))
    over_time = fleet.over_time
    latency = [over_time[name] for name in ("slow_p95_ms", "p95_ms", "p50_ms")]
    return template.render(
        fleet=fleet,
        devices=devices,
        troubled=[one for one in devices if one.state not in {"ok", None}],
        unasked=[one.device for one in devices if one.state is None],
        figures={
            name: _middle(getattr(one, name) for one in fleet.devices)
            for name in ("p50_ms", "p95_ms", "gpu_percent", "throttled")
        },
        latency_top=_top(latency),
        energy_top=_top([over_time["joules_per_request"]]),
        style=_style(),
        version=__version__,
        plot_size={"width": PLOT_WIDTH, "height": PLOT_HEIGHT},
        line_size={"width": LINE_WIDTH, "height": LINE_HEIGHT},
    )


def _style() -> str:
    """Return the style of the agent's own page, so that both look alike."""
    page = files("edge").joinpath("dashboard.html").read_text(encoding="utf-8")
    found = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert found is not None  # noqa: S101 - it is shipped with us
    return found[1]


def _points(series: Series, top: float | None, width: int, height: int) -> str:
    """Return a path through a series: a gap where nothing is known, a dash for a lone value."""
    words, is_down, step = [], False, width / BINS
    for place, value in enumerate(series):
        if value is None or not top:
            is_down = False
            continue
        x, y = (place + 0.5) * step, (height - 2) * (1 - min(value / top, 1.0)) + 1
        if is_down:
            words.append(f"L{x:.1f} {y:.1f}")
        else:
            words.append(f"M{x - step / 4:.1f} {y:.1f}L{x + step / 4:.1f} {y:.1f}")
        is_down = True
    return "".join(words)


def _top(every: Sequence[Series]) -> float | None:
    """Return a round number that nothing exceeds: 1, 2 or 5 times a power of ten."""
    highest = max((v for series in every for v in series if v is not None), default=0.0)
    if highest <= 0:
        return None
    power = 10.0 ** (len(f"{highest:.0f}") - 1) if highest >= 1 else 1e-9
    while power * 10 <= highest:
        power *= 10
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= highest)


def _middle(values: Iterable[float | None]) -> float | None:
    known = sorted(value for value in values if value is not None)
    return known[len(known) // 2] if known else None


def _number(value: float | None, unit: str = "") -> str:
    """Return a figure with three digits or so, and its unit."""
    if value is None:
        return UNKNOWN
    size = abs(value)
    digits = 0 if size >= 100 or value == 0 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:,.{digits}f}{chr(0xA0) + unit if unit else ''}"


def _round_number(value: float | None, unit: str) -> str:
    return UNKNOWN if value is None else f"{value:,g} {unit}"


def _share(value: float | None) -> str:
    """Return a share in percent; what is not all of it never reads as 100."""
    if value is None:
        return UNKNOWN
    percent = min(value * 100, 99.9) if value < 1 else 100.0
    return f"{percent:.1f}".removesuffix(".0") + " %"


def _time(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def _tone(state: str | None) -> str:
    return _TONES.get(state, "bad")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
