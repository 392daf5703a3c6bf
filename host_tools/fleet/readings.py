"""The figures in one device's polls as columns: what a report over millions of polls is made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from host_tools.fleet.changes import SERVING

Column: TypeAlias = NDArray[np.float64]


class _Figures(msgspec.Struct, gc=False):
    """Of facts as they are kept, those that are counted."""

    p50_ms: float | None = None
    p95_ms: float | None = None
    requests: int | None = None
    gpu_percent: float | None = None
    energy_joules: float | None = None
    uptime_s: float | None = None
    throttled: tuple[str, ...] | None = None


_LINES = msgspec.json.Decoder(_Figures)
_NONE = _Figures()


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """A value for each poll, oldest first; NaN where nobody could tell.

    served, throttled: 0 or 1. told: whether the device gave a report.
    """

    time_s: Column
    served: Column
    told: NDArray[np.bool_]
    p50_ms: Column
    p95_ms: Column
    requests: Column
    gpu_percent: Column
    energy_joules: Column
    uptime_s: Column
    throttled: Column


def readings_from_rows(rows: Sequence[Any]) -> Readings:
    """Return the readings in rows of time, state and facts; raises msgspec.MsgspecError."""
    texts = [facts for _, _, facts in rows if facts is not None]
    known = iter(_LINES.decode_lines("\n".join(texts)) if texts else ())
    figures = [_NONE if facts is None else next(known) for _, _, facts in rows]
    return Readings(
        time_s=_column(time_s for time_s, _, _ in rows),
        served=_column(state in SERVING for _, state, _ in rows),
        told=np.array([facts is not None for _, _, facts in rows], dtype=bool),
        p50_ms=_column(one.p50_ms for one in figures),
        p95_ms=_column(one.p95_ms for one in figures),
        requests=_column(one.requests for one in figures),
        gpu_percent=_column(one.gpu_percent for one in figures),
        energy_joules=_column(one.energy_joules for one in figures),
        uptime_s=_column(one.uptime_s for one in figures),
        throttled=_column(None if one.throttled is None else bool(one.throttled)
                          for one in figures),
    )  # fmt: skip


def joined(parts: Sequence[Readings]) -> Readings:
    """Return readings one behind the other."""
    names = Readings.__slots__
    return Readings(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    )


def _column(values: Iterable[float | None]) -> Column:
    return np.array(list(values), dtype=np.float64)  # None becomes NaN
