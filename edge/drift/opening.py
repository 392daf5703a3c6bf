"""What watches an opened model, where its bundle holds a reference."""

from __future__ import annotations

import logging
from collections.abc import Callable

from edge.bundle import Bundle
from edge.drift.reading import Reader, Vocabulary
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
    return DriftWatch(model.name, reference, reader, rules, on_change=on_change)
