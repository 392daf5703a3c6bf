"""What the bundle in service did before the switch, so that a trial can be held against it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from edge.errors import StorageError
from edge.files import atomic_write, read_capped
from edge.gate.questions import Answers

BASELINE_NAME = "gate.json"
MAX_BASELINE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What was measured. bundle, trial: ids of the one that was asked and of the one that came.

    variants: by model, which one answered.
    """

    bundle: str
    trial: str
    answers: tuple[Answers, ...]
    memory_bytes: int | None
    variants: dict[str, str] = field(default_factory=dict)


def write_baseline(root: Path, baseline: Baseline) -> None:
    """Keep it over a power cut; raises StorageError."""
    atomic_write(root / BASELINE_NAME, msgspec.json.encode(baseline) + b"\n")


def read_baseline(root: Path, trial: str) -> Baseline | None:
    """Return what was measured before this trial, None if nothing was, or it cannot be read."""
    try:
        content = read_capped(root / BASELINE_NAME, max_bytes=MAX_BASELINE_BYTES)
        baseline = msgspec.json.decode(content, type=Baseline)
    except (StorageError, msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
    return baseline if baseline.trial == trial else None
