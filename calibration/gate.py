"""The accuracy gate: may this int8 model replace its fp32 parent?"""

from __future__ import annotations

from dataclasses import dataclass

from edge.manifest import Accuracy


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Limits an int8 model must keep on held-out samples.

    With labels only max_top1_drop counts, in percentage points. Without labels the mean cosine to
    fp32 counts and, for a model that ends in a classifier, the agreement of the top class.
    """

    max_top1_drop: float = 0.5
    min_cosine: float = 0.98
    min_agreement_percent: float = 99.0


def gate_problems(accuracy: Accuracy, gate: Gate) -> list[str]:
    """Return one sentence per limit that is not kept; an empty list is a pass."""
    problems = []
    if accuracy.fp32_top1_percent is not None and accuracy.int8_top1_percent is not None:
        drop = accuracy.fp32_top1_percent - accuracy.int8_top1_percent
        if not drop <= gate.max_top1_drop + 1e-9:
            problems.append(
                f"top-1 falls by {drop:.2f} points, from {accuracy.fp32_top1_percent:.2f} % to "
                f"{accuracy.int8_top1_percent:.2f} %; at most {gate.max_top1_drop} are allowed"
            )
        return problems
    if not accuracy.cosine_mean >= gate.min_cosine:
        problems.append(
            f"mean cosine to fp32 is {accuracy.cosine_mean:.4f}; at least {gate.min_cosine} is "
            "needed"
        )
    agreement = accuracy.argmax_agreement_percent
    if agreement is not None and not agreement >= gate.min_agreement_percent:
        problems.append(
            f"the top class agrees with fp32 on {agreement:.2f} % of the samples; at least "
            f"{gate.min_agreement_percent} % is needed (--min-agreement 0 if it is no classifier)"
        )
    return problems
