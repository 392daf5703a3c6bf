"""What watches an opened model, where its bundle holds a reference."""

from __future__ import annotations

import logging
from collections.abc import Callable

from edge.bundle import Bundle
from edge.config import AgentConfig
from edge.drift.keeping import Keeper, KeepRules
from edge.drift.kept_folder import About
from edge.drift.reading import Reader, Vocabulary, is_batched, scores_of
from edge.drift.reference import MAX_REFERENCE_BYTES, reference_from_bytes, reference_path
from edge.drift.watch import DriftReport, DriftRules, DriftWatch
from edge.errors import BundleError, EdgeError
from edge.files import read_capped
from edge.manifest import Model
from edge.text import Tokenizer

logger = logging.getLogger(__name__)


def watch_of(
    bundle: Bundle,
    model: Model,
    tokenizer: Tokenizer | None,
    rules: DriftRules,
    keep: KeepRules | None,
    *,
    on_change: Callable[[str, DriftReport], None],
) -> DriftWatch | None:
    """Return what watches a model; None without a reference, or with one that cannot be read.

    A model is served all the same, so that the latter is logged only.
    """
    path = reference_path(model.name)
    artifact = next((a for a in bundle.manifest.artifacts if a.path == path), None)
    if artifact is None or path in bundle.absent or model.chat is not None:
        return None
    try:
        if artifact.size > MAX_REFERENCE_BYTES:
            raise BundleError(f"it is larger than {MAX_REFERENCE_BYTES} bytes")
        content = read_capped(bundle.path(path), max_bytes=artifact.size)
        reference = reference_from_bytes(content)
    except EdgeError as error:
        logger.warning("drift is not watched model=%s: %s", model.name, error)
        return None
    reader = Reader(model, None if tokenizer is None else Vocabulary(tokenizer))
    keeper = None if keep is None else _keeper_of(bundle, model, artifact.sha256, keep)
    return DriftWatch(model.name, reference, reader, rules, keeper=keeper, on_change=on_change)


def keep_rules(config: AgentConfig) -> KeepRules | None:
    """Return what is to be kept of the inputs, None for nothing."""
    if config.drift_keep_inputs == 0:
        return None
    names = (config.drift_keep_redact or "").split(",")
    return KeepRules(
        folder=config.drift_keep_folder,
        rows=config.drift_keep_inputs,
        bytes=config.drift_keep_bytes,
        redact=frozenset(name.strip() for name in names if name.strip()),
    )


def _keeper_of(bundle: Bundle, model: Model, reference: str, rules: KeepRules) -> Keeper | None:
    """Return what keeps inputs of a model; None, and a line why, where it cannot."""
    manifest = bundle.manifest
    known = {spec.name for each in manifest.models for spec in each.inputs}
    problem = None
    if not rules.redact <= known:
        wrong, names = min(rules.redact - known), ", ".join(sorted(known))
        problem = f"no model has an input {wrong!r} to redact, only {names}"
    elif not all(map(is_batched, model.inputs)):
        problem = "not all of its inputs have one row a sample"
    if problem is None:
        about = About(
            model=model.name,
            model_version=model.version,
            bundle_version=manifest.version,
            reference_sha256=reference,
            inputs=tuple(spec.name for spec in model.inputs),
            outputs=tuple(spec.name for spec in model.outputs if is_batched(spec)),
            scores=scores_of(model),
            labels=() if model.classes is None else model.classes.labels,
        )
        try:
            return Keeper.open(about, rules)
        except Exception as error:  # noqa: BLE001 - supervised: a model is served without it
            problem = str(error) or type(error).__name__
    logger.warning("inputs are not kept model=%s: %s", model.name, problem)
    return None
