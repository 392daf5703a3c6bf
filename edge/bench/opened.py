"""A model of a bundle opened outside the agent, the way the agent would: to measure it alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from edge.bundle import Bundle
from edge.choice import Choice, Refusal, choice_from, rank
from edge.config import AgentConfig
from edge.engine_process import AttemptError
from edge.errors import EdgeError, UnknownModelError, UsageError
from edge.files import read_capped
from edge.manifest import Model
from edge.preparing import Preparer
from edge.session import Session
from edge.slots.opening import open_configured
from edge.target import Target, detect_target


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An opened session, and the choice that led to it."""

    session: Session
    choice: Choice


def verified_bundle(config: AgentConfig) -> Bundle:
    """Return the bundle of a configuration, checked as `serve` checks it."""
    return open_configured(config, defer_engines=True)


def model_in(bundle: Bundle, name: str | None) -> Model:
    """Return the model with this name, or the only one; raises UnknownModelError, UsageError."""
    models = {model.name: model for model in bundle.manifest.models}
    if name is None and len(models) > 1:
        raise UsageError(f"the bundle has {', '.join(models)}; choose one with --model")
    if name is None:
        return bundle.manifest.models[0]
    if name not in models:
        raise UnknownModelError(f"the bundle has no model {name!r}; it has {', '.join(models)}")
    return models[name]


def reader(bundle: Bundle) -> Callable[[str], bytes]:
    """Return what gives the content of an artifact by its path."""

    def read(path: str) -> bytes:
        return read_capped(bundle.path(path), max_bytes=bundle.manifest.artifact(path).size)

    return read


def open_model(
    bundle: Bundle,
    model: Model,
    config: AgentConfig,
    *,
    progress: Callable[[str, int, int], bool] = lambda phase, done, total: True,
    detect: Callable[[], Target] = detect_target,
) -> Opened:
    """Open the variant that the configuration forces, or else the best that opens here.

    The session belongs to the calling thread. Raises what `choice_from` raises if none does.
    """
    target = detect()
    # In this very process, on one GPU: what is measured is the session, not the way to it.
    target = replace(target, gpus=min(1, target.gpus))
    config = replace(config, isolate=False)
    ranking = rank(
        model,
        target,
        trusted=bundle.signed_by is not None,
        may_build=config.build_on_device,
        forced=config.variant,
        absent=bundle.absent,
    )
    preparer = Preparer(config, target, progress=progress, stop=threading.Event())
    failed: tuple[Refusal, ...] = ()
    while True:
        choice = choice_from(model, ranking, failed)
        wanted = (choice.variant, choice.means)
        candidate = next(c for c in ranking.candidates if (c.variant, c.means) == wanted)
        code = "open-failed"
        try:
            prepared = preparer.prepare(bundle, model, candidate)
            try:
                return Opened(session=prepared.open(0), choice=choice)
            finally:
                prepared.close()
        except AttemptError as error:
            code, reason = error.refusal, str(error)
        except EdgeError as error:
            if error.code == "backend-unavailable":
                code = error.code
            reason = str(error)
        failed += (
            Refusal(variant=choice.variant.id, means=choice.means, code=code, reason=reason),
        )
