"""Watches one model: collects windows of requests, and says whether they are like the reference.

`observe` is called for every answer and only appends. `turn` does the rest, in a thread that waits
for nobody.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from edge.drift.comparing import Comparison, What, Window, compare
from edge.drift.keeping import Chosen, Keeper
from edge.drift.reading import Reader, Taken
from edge.drift.reference import Reference
from edge.spec import AnyArray, Feeds

State = Literal["collecting", "steady", "drifted"]

MAX_WAITING = 128  # requests
MIN_ROWS = 30  # of a window that is compared for its age
MAX_SHOWN = 16

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftRules:
    """How windows are made and judged.

    rows: of a window. seconds: after which a window of fewer rows is compared, if it has MIN_ROWS.
    level: share of the windows without drift that may count as drifted.
    """

    rows: int = 200
    seconds: float = 3600.0
    level: float = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftReport:
    """How a model's requests compare with its reference.

    since_s: Unix time since which this state holds. window_rows: of a whole window; rows: that the
    one under way has; compared_rows: that the last one had. windows: how many were compared.
    skipped: requests that came too fast to be looked at. kept: rows on disk. largest:
    statistic of each kind. features: the least likely first, with classes and whole rows among
    them.
    """

    state: State
    since_s: float
    detail: str
    window_rows: int
    rows: int
    compared_rows: int
    windows: int
    skipped: int
    kept: int = 0
    level: float
    largest: dict[What, float]
    features: tuple[Comparison, ...]


class DriftWatch:
    """The drift of one model. `observe` and `report` may be called from any thread.

    keeper: keeps some of the rows, where the configuration says so.
    on_change: called with the model and the report when the state changes, in the thread of `turn`.
    """

    def __init__(
        self,
        model: str,
        reference: Reference,
        reader: Reader,
        rules: DriftRules,
        *,
        keeper: Keeper | None = None,
        on_change: Callable[[str, DriftReport], None] = lambda model, report: None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.model = model
        self._reference = reference
        self._reader = reader
        self._rules = rules
        self._keeper = keeper
        self._on_change = on_change
        self._clock = clock
        self._wall_clock = wall_clock
        self._waiting: deque[_Waiting] = deque()
        self._skipped = 0
        self._is_failing = False
        self._collected = _Collected()
        self._report = DriftReport(
            state="collecting",
            since_s=wall_clock(),
            detail=f"the first {rules.rows} rows are being collected",
            window_rows=rules.rows,
            rows=0,
            compared_rows=0,
            windows=0,
            skipped=0,
            kept=0 if keeper is None else len(keeper),
            level=rules.level,
            largest={},
            features=(),
        )

    @property
    def report(self) -> DriftReport:
        """What is known; replaced as a whole."""
        return self._report

    def observe(
        self,
        feeds: Feeds,
        outputs: Mapping[str, AnyArray],
        texts: Sequence[str] | None = None,
    ) -> None:
        """Remember one answered request; never raises, and is never in anybody's way.

        texts: of the rows, where it was asked with texts.
        """
        if len(self._waiting) >= MAX_WAITING:
            self._skipped += 1
            return
        try:
            taken = self._reader.take(feeds, outputs)
            chosen = None if self._keeper is None else self._keeper.choose(feeds, outputs, texts)
        except Exception as error:  # noqa: BLE001 - supervised: no answer may fail of being watched
            self._note_failure(error)
            return
        self._waiting.append(_Waiting(taken, chosen))

    def turn(self) -> None:
        """Summarise what has come, and compare a window that is full or old; in one thread."""
        try:
            self._turn()
        except Exception as error:  # noqa: BLE001 - supervised: it is only watched
            self._collected = _Collected()
            if self._keeper is not None:
                self._keeper.drop_window()
            self._note_failure(error)

    def _turn(self) -> None:
        now = self._clock()
        while self._waiting:
            waiting = self._waiting.popleft()
            if self._keeper is not None and waiting.chosen is not None:
                self._keeper.take(waiting.chosen)
            self._collect(waiting.taken, now)
            if self._collected.rows >= self._rules.rows:
                self._compare()
        collected = self._collected
        is_old = now - collected.began >= self._rules.seconds
        if collected.rows >= MIN_ROWS and is_old:
            self._compare()
        self._change(rows=self._collected.rows, skipped=self._skipped)

    def _collect(self, taken: Taken, now: float) -> None:
        collected = self._collected
        if collected.rows == 0:
            collected.began = now
        summary = self._reader.summary_of(taken)
        collected.rows += taken.rows
        collected.names = summary.names
        collected.features.append(summary.features)
        if summary.classes is not None:
            collected.classes.append(summary.classes)
        whole = self._reference.whole
        if whole is not None and summary.vectors.shape[1] == whole.values:
            collected.whole_sum = collected.whole_sum + whole.features(summary.vectors).sum(axis=0)
            collected.whole_rows += taken.rows

    def _compare(self) -> None:
        collected, self._collected = self._collected, _Collected()
        features = np.concatenate(collected.features)
        window = Window(
            names=collected.names,
            features=features,
            classes=np.concatenate(collected.classes) if collected.classes else None,
            whole_mean=collected.whole_sum / collected.whole_rows if collected.whole_rows else None,
            whole_rows=collected.whole_rows,
        )
        compared = compare(self._reference, window, level=self._rules.level)
        state = state_after(compared)
        if self._keeper is not None:
            self._keeper.end_window(is_drifted=state == "drifted")
        before, is_change = self._report, state != self._report.state
        self._is_failing = False
        self._change(
            state=state,
            since_s=self._wall_clock() if is_change else before.since_s,
            detail=detail_of(compared, len(features)),
            compared_rows=len(features),
            windows=before.windows + 1,
            kept=0 if self._keeper is None else len(self._keeper),
            largest=_largest(compared),
            features=compared[:MAX_SHOWN],
        )
        if is_change:
            log = logger.warning if state == "drifted" else logger.info
            log("drift model=%s state=%s: %s", self.model, state, self._report.detail)
            self._on_change(self.model, self._report)

    def _change(self, **fields: object) -> None:
        values = {name: getattr(self._report, name) for name in DriftReport.__dataclass_fields__}
        self._report = DriftReport(**{**values, **fields})

    def _note_failure(self, error: Exception) -> None:
        if not self._is_failing:
            logger.warning("drift is not watched model=%s: %s", self.model, error)
        self._is_failing = True


class _Waiting(NamedTuple):
    """What was taken of a request, and what may be kept of it."""

    taken: Taken
    chosen: Chosen | None


class _Collected:
    """A window under way."""

    def __init__(self) -> None:
        self.began = 0.0
        self.rows = 0
        self.names: tuple[str, ...] = ()
        self.features: list[AnyArray] = []
        self.classes: list[AnyArray] = []
        self.whole_sum: AnyArray = np.zeros(1)
        self.whole_rows = 0


def _largest(compared: tuple[Comparison, ...]) -> dict[What, float]:
    found: dict[What, float] = {}
    for each in compared:
        found[each.kind] = max(each.statistic, found.get(each.kind, 0.0))
    return found


def state_after(compared: tuple[Comparison, ...]) -> State:
    """Return the state after a window: what was before it does not count."""
    return "drifted" if any(each.drifted for each in compared) else "steady"


def detail_of(compared: tuple[Comparison, ...], rows: int) -> str:
    """Return what a window says, as a sentence."""
    worst = [each for each in compared if each.drifted]
    if not worst:
        return f"the last {rows} rows are like the reference"
    names = ", ".join(f"{each.name} ({each.statistic:.2g})" for each in worst[:4])
    more = f" and {len(worst) - 4} more" if len(worst) > 4 else ""
    return f"the last {rows} rows differ from the reference in {names}{more}"
