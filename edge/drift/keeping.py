"""Keeps a sample of what a model is asked and answers, for training it again.

`choose` is called for every answer and takes references at most. The rest is done in the thread
that compares windows, which tells whether the rows of a window drifted.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge.drift.kept import MAX_ROW_BYTES, Row, bytes_from_row
from edge.drift.kept_folder import DRIFTED, FOLDERS, STEADY, About, KeptFolder, open_folder
from edge.drift.reading import MAX_ROWS_TAKEN
from edge.drift.sampling import KEY_BITS, MAX_KEY, UniformSample
from edge.errors import EdgeError
from edge.spec import AnyArray, Feeds
from edge.tensor_bytes import held_bytes

MAX_WAITING_BYTES = 16 << 20  # of requests whose rows wait for the thread
MAX_WINDOW_BYTES = 16 << 20  # of the rows of a window under way

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepRules:
    """What is kept of each model: so many rows of windows that drifted, and as many of others.

    bytes: of all their files. redact: inputs that are kept without their contents.
    """

    folder: Path
    rows: int
    bytes: int
    redact: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Rows of one request that may be kept, by their keys, and references to all of it."""

    when: float
    keys: dict[int, int]
    feeds: Feeds
    outputs: Feeds
    texts: Sequence[str] | None
    size: int


class Keeper:
    """The kept rows of one model; make it with `open`.

    `choose` belongs to the thread of the answers, the rest to the thread of the windows.
    """

    def __init__(
        self,
        about: About,
        folder: KeptFolder,
        rules: KeepRules,
        *,
        draw: Callable[[], int],
        wall_clock: Callable[[], float],
    ) -> None:
        self._about = about
        self._folder = folder
        self._rules = rules
        self._draw = draw
        self._wall_clock = wall_clock
        self._samples = {name: self._new_sample(rules.bytes // 2) for name in FOLDERS}
        self._window = self._new_sample(MAX_WINDOW_BYTES)
        self._rows: dict[int, Row] = {}
        self._limit = MAX_KEY
        self._chosen_bytes = self._taken_bytes = 0  # each written by one thread
        self._is_failing = False

    @classmethod
    def open(
        cls,
        about: About,
        rules: KeepRules,
        *,
        draw: Callable[[], int] | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> Keeper:
        """Go on with the rows that are there; raises StorageError if there can be none."""
        about = msgspec.structs.replace(about, redact=tuple(sorted(rules.redact)))
        folder = open_folder(rules.folder, about)
        rng = random.Random()  # noqa: S311 - a sample, no secret
        keeper = cls(
            about,
            folder,
            rules,
            draw=draw or (lambda: rng.getrandbits(KEY_BITS)),
            wall_clock=wall_clock,
        )
        keeper._load()
        return keeper

    def __len__(self) -> int:
        return sum(map(len, self._samples.values()))

    def choose(self, feeds: Feeds, outputs: Feeds, texts: Sequence[str] | None) -> Chosen | None:
        """Return what may be kept of an answered request; None, as mostly, for nothing."""
        count = min(MAX_ROWS_TAKEN, len(next(iter(feeds.values()))))
        keys = {row: key for row in range(count) if (key := self._draw()) < self._limit}
        if not keys:
            return None
        size = sum(map(held_bytes, (*feeds.values(), *outputs.values())))
        if self._chosen_bytes - self._taken_bytes + size > MAX_WAITING_BYTES:
            return None
        self._chosen_bytes += size
        return Chosen(
            when=self._wall_clock(), keys=keys, feeds=feeds, outputs=outputs, texts=texts, size=size
        )

    def take(self, chosen: Chosen) -> None:
        """Copy the rows of a request that the window under way keeps; hold the request no more."""
        self._taken_bytes += chosen.size
        for number, key in chosen.keys.items():
            if key > self._window.limit:
                continue
            feeds = _row_of(chosen.feeds, self._about.inputs, number)
            outputs = _row_of(chosen.outputs, self._about.outputs, number)
            size = sum(map(held_bytes, feeds.values()))
            if size > MAX_ROW_BYTES:
                self._note(f"a row of {size} bytes is larger than {MAX_ROW_BYTES}")
                continue
            answer_bytes = sum(map(held_bytes, outputs.values()))
            if answer_bytes > MAX_ROW_BYTES:
                outputs, answer_bytes = {}, 0
            text = None if chosen.texts is None else chosen.texts[number]
            self._rows[key] = Row(when=chosen.when, feeds=feeds, outputs=outputs, text=text)
            for out in self._window.add(key, size + answer_bytes):
                del self._rows[out]
        self._limit = min(self._window.limit, max(s.limit for s in self._samples.values()))

    def end_window(self, *, is_drifted: bool) -> None:
        """Store the rows of a window; a failure to write is logged once."""
        window, rows = self._window, self._rows
        self.drop_window()
        name = DRIFTED if is_drifted else STEADY
        try:
            self._store(name, window.limit, rows)
        except (OSError, EdgeError) as error:
            self._note(str(error))
        self._limit = max(sample.limit for sample in self._samples.values())

    def drop_window(self) -> None:
        """Forget the rows of the window under way."""
        self._window, self._rows = self._new_sample(MAX_WINDOW_BYTES), {}

    def _store(self, name: str, limit: int, rows: dict[int, Row]) -> None:
        sample = self._samples[name]
        for key in sample.lower(limit):
            self._folder.remove(name, key)
        for key in sorted(rows):
            if key > sample.limit:
                break
            content = bytes_from_row(rows[key], self._about.model, redact=self._rules.redact)
            if content is None:
                continue
            self._folder.write(name, key, content)
            for out in sample.add(key, len(content)):
                self._folder.remove(name, out)

    def _load(self) -> None:
        for name, sample in self._samples.items():
            for key, size in sorted(self._folder.keys(name)):
                for out in sample.add(key, size):
                    self._folder.remove(name, out)
        self._limit = max(sample.limit for sample in self._samples.values())

    def _new_sample(self, max_bytes: int) -> UniformSample:
        return UniformSample(max_rows=self._rules.rows, max_bytes=max_bytes)

    def _note(self, problem: str) -> None:
        if not self._is_failing:
            logger.warning("an input is not kept model=%s: %s", self._about.model, problem)
        self._is_failing = True


def _row_of(arrays: Feeds, names: Sequence[str], number: int) -> dict[str, AnyArray]:
    """Return a copy of one row of these arrays, as far as they are there."""
    return {name: arrays[name][number : number + 1].copy() for name in names if name in arrays}
