"""What the gate found: each check with what was measured and what is allowed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["committed", "rolled-back", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at. measured, limit: in words with their unit.

    factor: of what was measured against the bundle before, None where nothing was compared.
    """

    name: str
    passed: bool
    measured: str
    limit: str
    reason: str = ""
    factor: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GateReport:
    """The verdict on a trial, and all that led to it.

    bundle: its id. seconds: from the switch to the verdict. serves: id of the bundle that answers
    in the end, None if nobody does. notes: what the agent said of itself, as it was last seen.
    """

    bundle: str
    verdict: Verdict
    reason: str
    checks: tuple[Check, ...]
    seconds: float
    serves: str | None
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the bundle stays."""
        return self.verdict == "committed"


def reason_of(checks: tuple[Check, ...]) -> str:
    """Return why checks that failed did, in one line; empty if all passed."""
    failed = [check for check in checks if not check.passed]
    return "; ".join(
        f"{check.name}: {check.reason or f'{check.measured}, {check.limit} is allowed'}"
        for check in failed
    )
