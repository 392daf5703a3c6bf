"""Which variant of a model to serve here, by what means, why, and why not the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edge.errors import (
    BackendUnavailableError,
    ConfigError,
    EdgeError,
    ModelError,
    SelfTestError,
)
from edge.manifest import Model, Precision, Variant
from edge.matching import GPU_MEANS, MEANS, Means, Mismatch, ways_to_run
from edge.target import Target

REFUSAL_CODES: Mapping[str, str] = {
    "backend-unavailable": "the library that opens the variant is not installed",
    "build-disabled": "an engine would have to be built here, and the configuration says no",
    "build-failed": "TensorRT could not build an engine from the variant on this device",
    "crashed": "the process that tried the variant first was killed by a signal",
    "device-mismatch": "the engine was built for another module or card of the same SM",
    "digest-mismatch": "the file is not the one that the manifest names",
    "dla-missing": "the engine uses DLA cores that this device does not have",
    "driver-missing": "there is no CUDA driver or device that this process can use",
    "driver-too-old": "the CUDA driver is older than the engine needs",
    "memory": "the engine takes more memory than the device has",
    "not-forced": "the configuration names another variant",
    "not-on-device": "its files were not brought here, as nothing here could run them",
    "not-preferred": "another variant was preferred; this one was not tried",
    "not-trusted": "no trusted key signed the bundle, and an engine is executable code",
    "open-failed": "the backend could not open the variant on this device",
    "platform-mismatch": "the engine was built for another kind of machine",
    "plugin-missing": "the engine needs layers that are not registered here",
    "self-test-failed": "the variant does not reproduce the golden outputs on this device",
    "sm-mismatch": "the engine was built for another compute capability",
    "timed-out": "the process that tried the variant first did not finish in time",
    "version-mismatch": "the engine was built with another version of TensorRT",
}
_WORDS: Mapping[Means, str] = {
    "engine": "the engine was built for this device",
    "compatible-engine": "the engine was built for the SM of this device",
    "build": "an engine for this device is built from the graph",
    "ort-cuda": "ONNX Runtime runs it on the GPU",
    "ort-cpu": "ONNX Runtime runs it on the CPU",
}
_NOT_ON_DEVICE = Mismatch(
    code="not-on-device",
    reason="its files were not brought to this device, as it could not run them then; install the "
    "bundle again",
)
# A bundle carries int8 because its accuracy passed a gate; whoever prefers another packs it so.
_PRECISION_ORDER: tuple[Precision, ...] = ("int4", "w8a8", "int8", "fp16", "fp32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A variant that is not served, and the means if there were several.

    code: a key of REFUSAL_CODES; stable, for machines. reason: a sentence that names the way out.
    """

    variant: str
    code: str
    reason: str
    means: Means | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A variant that fits this device, how it would run, and why it stands where it does."""

    variant: Variant
    means: Means
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """What to try on this device, best first, and what need not be tried."""

    candidates: tuple[Candidate, ...]
    refused: tuple[Refusal, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The variant in service, the reason in words, and every other one with its own."""

    variant: Variant
    means: Means
    why: str
    refused: tuple[Refusal, ...]

    @property
    def on_gpu(self) -> bool:
        """Whether it runs on a GPU."""
        return self.means in GPU_MEANS


def rank(
    model: Model,
    target: Target,
    *,
    trusted: bool,
    may_build: bool = True,
    forced: str | None = None,
    absent: frozenset[str] = frozenset(),
) -> Ranking:
    """Return every variant of the model either as a candidate, best first, or as a refusal.

    Order: by MEANS, then the manifest's preference for the backend, then int8, fp16, fp32.
    forced: try this variant id alone. absent: artifacts that are not on this device. Raises
    ConfigError if forced names no variant.
    """
    ids = [variant.id for variant in model.variants]
    if forced is not None and forced not in ids:
        raise ConfigError(
            f"variant {forced!r} is not in model {model.name!r}; it has {', '.join(ids)}"
        )
    candidates, refused = [], []
    for variant in model.variants:
        if forced not in {None, variant.id}:
            reason = f"the configuration forces variant {forced!r}; unset `variant` to choose"
            refused.append(Refusal(variant=variant.id, code="not-forced", reason=reason))
            continue
        ways, mismatch = ways_to_run(variant, target, trusted=trusted, may_build=may_build)
        if mismatch is None and absent.intersection(variant.files):
            ways, mismatch = (), _NOT_ON_DEVICE
        if mismatch is not None:
            refused.append(Refusal(variant=variant.id, code=mismatch.code, reason=mismatch.reason))
        why = _why(model, variant, forced)
        candidates += [
            Candidate(variant=variant, means=means, why=f"{_WORDS[means]}{why}") for means in ways
        ]
    candidates.sort(key=lambda candidate: _place(model, candidate))
    return Ranking(candidates=tuple(candidates), refused=tuple(refused))


def choice_from(model: Model, ranking: Ranking, failed: tuple[Refusal, ...]) -> Choice:
    """Return the best candidate that did not fail.

    failed: one refusal for each candidate tried so far, with its means. Raises SelfTestError,
    ModelError or BackendUnavailableError if none is left, after the worst that happened.
    """
    tried = {(refusal.variant, refusal.means) for refusal in failed}
    left = [c for c in ranking.candidates if (c.variant.id, c.means) not in tried]
    if not left:
        raise _none_left(model, (*ranking.refused, *failed))
    chosen, *others = left
    not_tried = [
        Refusal(
            variant=other.variant.id,
            means=other.means,
            code="not-preferred",
            reason=f"variant {chosen.variant.id!r} is preferred here: {chosen.why}; set "
            f"`variant` to {other.variant.id!r} to serve this one",
        )
        for other in others
        if other.variant.id != chosen.variant.id
    ]
    order = {variant.id: place for place, variant in enumerate(model.variants)}
    refused = sorted(
        (*ranking.refused, *failed, *not_tried), key=lambda refusal: order[refusal.variant]
    )
    return Choice(
        variant=chosen.variant, means=chosen.means, why=chosen.why, refused=tuple(refused)
    )


def promises_gpu(model: Model) -> bool:
    """Whether a model was packed to run on a GPU: it has variants for TensorRT."""
    return any(variant.backend != "ort" for variant in model.variants)


def _place(model: Model, candidate: Candidate) -> tuple[int, bool, int]:
    preferred = {preference.variant for preference in model.preferences}
    return (
        MEANS.index(candidate.means),
        candidate.variant.id not in preferred,
        _PRECISION_ORDER.index(candidate.variant.precision),
    )


def _why(model: Model, variant: Variant, forced: str | None) -> str:
    if forced is not None:
        return ", and the configuration forces it"
    for preference in model.preferences:
        if preference.variant == variant.id:
            return f"; {preference.why}"
    return ""


def _none_left(model: Model, refused: tuple[Refusal, ...]) -> EdgeError:
    reasons = "; ".join(f"{r.variant}: {r.reason}" for r in refused)
    message = f"no variant of model {model.name!r} can be served here: {reasons}"
    codes = {refusal.code for refusal in refused}
    if "self-test-failed" in codes:
        return SelfTestError(message)
    opened = codes & {"open-failed", "build-failed", "crashed", "timed-out", "digest-mismatch"}
    return ModelError(message) if opened else BackendUnavailableError(message)
