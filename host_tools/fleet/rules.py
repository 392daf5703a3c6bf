"""When a rollout stops by itself: "failed>0 or p95>1.2x", read once and asked after every wave.

    rule       = conjunction { "or" conjunction }
    conjunction = comparison { "and" comparison }
    comparison = figure ( ">" | ">=" ) number [ "%" | "x" ]

Figures: failed, unreachable, rolled_back: devices of the waves so far, or with "%" their share;
p95, memory: of the trial against the bundle before, the worst device, as a factor.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from edge.errors import UsageError

COUNTS = ("failed", "unreachable", "rolled_back")
FACTORS = ("p95", "memory")
_TOKEN = re.compile(r"\s*(>=|>|[A-Za-z_0-9]+(?:\.[0-9]+)?[%x]?|\S)")
_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]+)?)([%x]?)")
_EXAMPLE = 'write it like "failed>0 or p95>1.2x"'

Unit = Literal["", "%", "x"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What became of the devices so far. factors: by name, None if nobody could tell."""

    devices: int
    failed: int = 0
    unreachable: int = 0
    rolled_back: int = 0
    factors: Mapping[str, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One comparison of a rule."""

    figure: str
    is_inclusive: bool
    number: float
    unit: Unit

    def holds(self, figures: Figures) -> bool:
        """Whether the figure is beyond the number; what nobody can tell is not."""
        value = _value(self, figures)
        if value is None:
            return False
        return value >= self.number if self.is_inclusive else value > self.number

    def __str__(self) -> str:
        return f"{self.figure}{'>=' if self.is_inclusive else '>'}{self.number:g}{self.unit}"


@dataclass(frozen=True, slots=True)
class Rule:
    """Alternatives of comparisons that must all hold."""

    alternatives: tuple[tuple[Comparison, ...], ...]

    def reason(self, figures: Figures) -> str | None:
        """Return the alternative that holds, in words; None to go on."""
        for comparisons in self.alternatives:
            if all(comparison.holds(figures) for comparison in comparisons):
                return " and ".join(map(str, comparisons))
        return None

    def __str__(self) -> str:
        return " or ".join(" and ".join(map(str, one)) for one in self.alternatives)


def rule_from_text(text: str) -> Rule:
    """Return the rule that text spells; raises UsageError naming the word that does not fit."""
    words = [match[1] for match in _TOKEN.finditer(text)]
    alternatives: list[tuple[Comparison, ...]] = []
    current: list[Comparison] = []
    at = 0
    while True:
        comparison, at = _comparison(text, words, at)
        current.append(comparison)
        if at == len(words) or words[at] == "or":
            alternatives.append(tuple(current))
            current = []
        elif words[at] != "and":
            raise _unfit(text, words[at], "and, or, or the end")
        if at == len(words):
            return Rule(tuple(alternatives))
        at += 1


def _comparison(text: str, words: list[str], at: int) -> tuple[Comparison, int]:
    figure, sign, number = (*words[at : at + 3], "", "", "")[:3]
    if figure not in (*COUNTS, *FACTORS):
        nearest = difflib.get_close_matches(figure, (*COUNTS, *FACTORS), n=1, cutoff=0)[0]
        raise _unfit(text, figure, f"a figure, such as {nearest}")
    if sign not in {">", ">="}:
        raise _unfit(text, sign, "> or >=")
    match = _NUMBER.fullmatch(number)
    if match is None:
        raise _unfit(text, number, "a number")
    unit: Unit = "%" if match[2] == "%" else "x" if match[2] == "x" else ""
    if (unit == "x") != (figure in FACTORS):
        wanted = "a factor, such as 1.2x" if figure in FACTORS else "a count or a share, such as 5%"
        raise _unfit(text, number, wanted)
    value = float(match[1])
    if not math.isfinite(value):
        raise _unfit(text, number, "a smaller number")
    comparison = Comparison(figure=figure, is_inclusive=sign == ">=", number=value, unit=unit)
    return comparison, at + 3


def _value(comparison: Comparison, figures: Figures) -> float | None:
    if comparison.figure in FACTORS:
        return figures.factors.get(comparison.figure)
    read: Callable[[Figures], int] = {
        "failed": lambda f: f.failed,
        "unreachable": lambda f: f.unreachable,
        "rolled_back": lambda f: f.rolled_back,
    }[comparison.figure]
    count = read(figures)
    if comparison.unit == "%":
        return 100.0 * count / figures.devices if figures.devices else 0.0
    return float(count)


def _unfit(text: str, word: str, wanted: str) -> UsageError:
    found = repr(word) if word else "the end"
    return UsageError(f"--halt-on {text!r}: {found} where {wanted} belongs; {_EXAMPLE}")
