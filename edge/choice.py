"""Which variant of a model to serve here, why, and why not the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edge.errors import (
    BackendUnavailableError,
    ConfigError,
    EdgeError,
    ModelError,
    SelfTestError,
)
from edge.manifest import Backend, Model, Variant

# A GPU first: a bundle carries its variants only because they were worth building.
BACKEND_ORDER: tuple[Backend, ...] = ("trt", "trt-rtx", "ort")

REFUSAL_CODES: Mapping[str, str] = {
    "backend-unavailable": "the library or device that opens the variant is not there",
    "not-forced": "the configuration names another variant",
    "not-preferred": "another variant of the same backend measured faster when it was packed",
    "open-failed": "the backend could not open the variant on this device",
    "self-test-failed": "the variant does not reproduce the golden outputs on this device",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A variant that is not served.

    code: a key of REFUSAL_CODES; stable, for machines. reason: a sentence that names the way out.
    """

    variant: str
    code: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The variant to serve, the reason in words, and every other variant with its own."""

    variant: Variant
    why: str
    refused: tuple[Refusal, ...]


def choose(
    model: Model,
    *,
    available: Callable[[Backend], str | None],
    forced: str | None,
    failed: tuple[Refusal, ...] = (),
) -> Choice:
    """Return the variant to try next.

    available: None if a backend can be used here, else why not. forced: serve this variant id or
    none. failed: variants that were tried already and did not open or pass the self-test.
    Raises ConfigError if forced names no variant; when none is left, SelfTestError, ModelError or
    BackendUnavailableError, after the worst that happened. The message lists every reason.
    """
    ids = [variant.id for variant in model.variants]
    if forced is not None and forced not in ids:
        raise ConfigError(
            f"variant {forced!r} is not in model {model.name!r}; it has {', '.join(ids)}"
        )
    refused = {refusal.variant: refusal for refusal in failed}
    for variant in model.variants:
        if variant.id not in refused and forced not in {None, variant.id}:
            refused[variant.id] = Refusal(
                variant=variant.id,
                code="not-forced",
                reason=f"the configuration forces variant {forced!r}; unset `variant` to choose",
            )
    unusable = {variant.backend: available(variant.backend) for variant in model.variants}
    for variant in model.variants:
        problem = unusable[variant.backend]
        if variant.id not in refused and problem is not None:
            refused[variant.id] = Refusal(
                variant=variant.id, code="backend-unavailable", reason=problem
            )
    candidates = [variant for variant in model.variants if variant.id not in refused]
    if not candidates:
        raise _none_left(model, refused)
    chosen, why = _best(model, candidates, forced)
    for variant in candidates:
        if variant.id != chosen.id:
            refused[variant.id] = Refusal(
                variant=variant.id,
                code="not-preferred",
                reason=f"variant {chosen.id!r} is preferred here: {why}; set `variant` to "
                f"{variant.id!r} to serve this one",
            )
    order = {id_: place for place, id_ in enumerate(ids)}
    ordered = sorted(refused.values(), key=lambda refusal: order[refusal.variant])
    return Choice(variant=chosen, why=why, refused=tuple(ordered))


def _best(model: Model, candidates: list[Variant], forced: str | None) -> tuple[Variant, str]:
    if forced is not None:
        return candidates[0], "the configuration forces it"
    backend = min((c.backend for c in candidates), key=BACKEND_ORDER.index)
    same = [candidate for candidate in candidates if candidate.backend == backend]
    for preference in model.preferences:
        for candidate in same:
            if candidate.id == preference.variant:
                return candidate, preference.why
    preferred = [p.variant for p in model.preferences if p.backend == backend]
    if preferred:
        return same[0], f"the preferred variant {preferred[0]!r} was refused"
    return same[0], f"it is the first {backend} variant of the manifest, which prefers none"


def _none_left(model: Model, refused: dict[str, Refusal]) -> EdgeError:
    reasons = "; ".join(f"{r.variant}: {r.reason}" for r in refused.values())
    message = f"no variant of model {model.name!r} can be served here: {reasons}"
    codes = {refusal.code for refusal in refused.values()}
    if "self-test-failed" in codes:
        return SelfTestError(message)
    return ModelError(message) if "open-failed" in codes else BackendUnavailableError(message)
