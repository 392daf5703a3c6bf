"""Notices that the slots serve another bundle than the one that was opened."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge.errors import StorageError
from edge.slots.layout import state_in
from edge.slots.state import SlotName, SlotsState

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotFacts:
    """The slot that is served, and whether its bundle is on trial or may stay."""

    slot: SlotName
    phase: Literal["committed", "trial"]


class SlotsWatch:
    """The bundle that the slots below a root served at first, and whether they still do."""

    def __init__(self, root: Path) -> None:
        """Raises StorageError if the state cannot be read."""
        self.root = root
        self.state: SlotsState = state_in(root)
        self._is_failing = False

    @property
    def on_trial(self) -> bool:
        """Whether what was served at first was on trial."""
        candidate = self.state.candidate
        return candidate is not None and candidate.phase == "trial"

    def has_changed(self) -> bool:
        """Return whether another bundle is to be served, or none; False while nobody can tell."""
        try:
            now = state_in(self.root)
        except StorageError as error:
            if not self._is_failing:
                logger.warning("the slots cannot be read, the bundle in service stays: %s", error)
            self._is_failing = True
            return False
        self._is_failing = False
        then = self.state.served
        if now.served is not None:
            return then is None or now.served.id != then.id
        # A first bundle that was rolled back. A root without a state is rather a disk that is gone.
        return then is not None and now.refusal(then.id) is not None

    def facts(self) -> SlotFacts | None:
        """What to tell of the slot that is served; its phase changes while it is."""
        try:
            now = state_in(self.root)
        except StorageError:
            now = self.state
        then = self.state.served
        if now.serving is None or then is None or now.served != then:
            return None
        is_committed = now.serving == now.committed
        return SlotFacts(slot=now.serving, phase="committed" if is_committed else "trial")
