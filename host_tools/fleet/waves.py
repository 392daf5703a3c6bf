"""Which device comes in which wave: the same for the same release, another for the next."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence

from edge.errors import UsageError
from edge.update.channel import share_of

_WAVE = re.compile(r"([0-9]{1,6}(?:\.[0-9]+)?)(%?)")


def waves_from_text(text: str, devices: int) -> tuple[int, ...]:
    """Return how many devices each wave reaches in all: "1,10%,100%" of 40 are (1, 4, 40).

    A share is rounded up. Raises UsageError for what is no number, or does not grow; the last wave
    is every device, whether it is written or not.
    """
    reached: list[int] = []
    for word in text.split(","):
        match = _WAVE.fullmatch(word.strip())
        if match is None or (match[2] == "" and "." in match[1]):
            raise UsageError(f'--waves {text!r}: {word!r} is no count or share; write "1,10%,100%"')
        value = float(match[1])
        if match[2] and value > 100:
            raise UsageError(f"--waves {text!r}: {word!r} is more than all devices")
        count = min(devices, -int(-value * devices // 100) if match[2] else int(value))
        if value == 0 or (reached and count < reached[-1]):
            raise UsageError(f"--waves {text!r}: {word!r} reaches no more devices than before")
        if not reached or count > reached[-1]:
            reached.append(count)
    if reached[-1] < devices:
        reached.append(devices)
    return tuple(reached)


def serial_of(text: str, devices: int) -> tuple[int, ...]:
    """Return how many devices each wave has, as `serial` of a playbook takes it."""
    reached = (0, *waves_from_text(text, devices))
    return tuple(after - before for before, after in itertools.pairwise(reached))


def planned_waves(
    names: Sequence[str], release: str, reached: Sequence[int]
) -> tuple[tuple[str, ...], ...]:
    """Return the names of each wave, in the order in which a channel's waves reach them.

    So that nobody is always first, and who is in the first wave is known before it begins.
    """
    ordered = sorted(names, key=lambda name: (share_of(name, release), name))
    bounds = (0, *reached)
    return tuple(tuple(ordered[first:last]) for first, last in itertools.pairwise(bounds))


def channel_shares(waves: Sequence[Sequence[str]], release: str) -> tuple[float, ...]:
    """Return up to which share of all devices each wave goes, in percent, as a channel takes it.

    A channel reaches every device below the share; between two waves there is a short number.
    """
    places = [[share_of(name, release) for name in wave] for wave in waves]
    between = (_short(max(one), min(then)) for one, then in itertools.pairwise(places))
    return (*between, 100.0)


def _short(low: float, high: float) -> float:
    """Return a number with few digits above low, and not above high."""
    for scale in (10.0**digits for digits in range(15)):
        found = (math.floor(low * scale) + 1) / scale
        if low < found <= high:
            return found
    return high
