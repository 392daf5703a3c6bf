"""What a registry is told of a bundle: parameters and metrics, from its Manifest alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from edge.manifest import Manifest, Model


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleFacts:
    """Names begin with that of the model. data_sha256: of the samples that ranges come from."""

    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    data_sha256: tuple[str, ...] = ()


def facts_from_manifest(manifest: Manifest) -> BundleFacts:
    """Return what is worth comparing between bundles."""
    facts = BundleFacts(
        data_sha256=tuple(
            sorted({m.calibration.data_sha256 for m in manifest.models if m.calibration})
        )
    )
    for model in manifest.models:
        facts.params.update({f"{model.name}.{name}": text for name, text in _params(model)})
        facts.metrics.update({f"{model.name}.{name}": value for name, value in _metrics(model)})
    return facts


def _params(model: Model) -> Iterator[tuple[str, str]]:
    yield "version", model.version
    yield "variants", ", ".join(variant.id for variant in model.variants)
    yield "source", model.provenance.source
    yield "opset", str(model.provenance.opset)
    yield "exporter", model.provenance.exporter
    for tool, version in sorted(model.provenance.tools.items()):
        yield f"tools.{tool}", version
    if model.calibration is not None:
        yield "calibration.method", model.calibration.method
        yield "calibration.samples", str(model.calibration.samples)
        yield "calibration.data_sha256", model.calibration.data_sha256


def _metrics(model: Model) -> Iterator[tuple[str, float]]:
    if model.accuracy is not None:
        yield from _numbers("accuracy", model.accuracy)
    for variant in model.variants:
        if variant.quality is not None:
            yield from _numbers(f"{variant.id}.quality", variant.quality)
        for one in variant.measurements:
            yield f"{variant.id}.batch{one.batch}.p50_ms", one.p50_ms
            yield f"{variant.id}.batch{one.batch}.p99_ms", one.p99_ms
        if variant.memory_bytes:
            yield f"{variant.id}.memory_bytes", float(variant.memory_bytes)


def _numbers(prefix: str, record: object) -> Iterator[tuple[str, float]]:
    for name, value in msgspec.to_builtins(record).items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}.{name}", float(value)
