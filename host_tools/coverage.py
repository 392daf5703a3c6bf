"""Does the calibration text look like what the profile promises to serve?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from host_tools.text import IDS, MASK, TextSamples

_BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Lengths in tokens and use of the vocabulary over a calibration set."""

    samples: int
    shortest: int
    median: int
    p95: int
    longest: int
    profile_min: int
    profile_max: int
    tokens: int
    distinct: int
    seen_once: int
    vocabulary: int

    def lines(self) -> list[str]:
        """Return the report, one sentence a line."""
        share = 100.0 * self.distinct / self.vocabulary
        return [
            f"lengths: {self.shortest} / {self.median} / {self.p95} / {self.longest} tokens "
            f"(min / median / p95 / max), profile {self.profile_min} to {self.profile_max}",
            f"vocabulary: {self.distinct:,} of {self.vocabulary:,} tokens seen ({share:.1f} %), "
            f"{self.seen_once:,} of them once, in {self.tokens:,} tokens",
        ]

    def warnings(self) -> list[str]:
        """Return what is missing, each with what to add."""
        found = []
        if self.longest < 0.75 * self.profile_max:
            found.append(
                f"no long text: the longest has {self.longest} tokens, the profile allows "
                f"{self.profile_max}; add longer lines or narrow --shape"
            )
        if self.shortest > max(8, 2 * self.profile_min):
            found.append(
                f"no short text: the shortest has {self.shortest} tokens, the profile allows "
                f"{self.profile_min}; add short lines"
            )
        if self.distinct < 0.05 * self.vocabulary:
            found.append(
                f"rare words are missing: {self.distinct:,} of {self.vocabulary:,} tokens occur; "
                "add more varied text"
            )
        return found


def coverage_of(samples: TextSamples) -> Coverage:
    """Return the coverage of a text file against the model's profile and vocabulary."""
    bounds = samples.profile.ranges[IDS]
    lengths: list[int] = []
    counts = np.zeros(samples.vocabulary_size, np.int64)
    for feeds in samples.batches(_BATCH, 0, samples.count):
        ids = feeds[IDS]
        mask = feeds[MASK].astype(bool) if MASK in feeds else ids != 0
        lengths.extend(mask.sum(axis=1).tolist())
        counts += np.bincount(ids[mask], minlength=len(counts))[: len(counts)]
    return Coverage(
        samples=samples.count,
        shortest=min(lengths),
        median=int(np.median(lengths)),
        p95=int(np.percentile(lengths, 95)),
        longest=max(lengths),
        profile_min=bounds.min[1],
        profile_max=bounds.max[1],
        tokens=int(counts.sum()),
        distinct=int((counts > 0).sum()),
        seen_once=int((counts == 1).sum()),
        vocabulary=len(counts),
    )
