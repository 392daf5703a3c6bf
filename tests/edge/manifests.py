"""A complete Manifest, and what a test does to its bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from edge import manifest as m
from edge.errors import BundleError
from edge.manifest import bytes_from_manifest
from edge.manifest_reading import manifest_from_bytes
from tests.bundles import affine_parts

Change = Callable[[Any], object]


def full_manifest() -> m.Manifest:
    """Return a Manifest in which every optional field is present."""
    manifest, files = affine_parts()
    model = manifest.models[0]
    measured = m.Measurement(
        device="cpu", runtime="ort 1", threads=2, batch=1, runs=9, p50_ms=1.5, p99_ms=2.25
    )
    model = replace(
        model,
        variants=tuple(
            replace(v, measurements=(measured,), memory_bytes=3 << 20) for v in model.variants
        ),
        # json spells 1e-05 where msgspec writes 0.00001; above, both agree.
        golden=replace(model.golden, tolerance={"fp32": 0.001, "int8": 0.1}),
        accuracy=m.Accuracy(
            samples=540,
            labelled=True,
            fp32_top1_percent=98.5,
            int8_top1_percent=98.25,
            argmax_agreement_percent=99.5,
            cosine_mean=0.99,
            cosine_min=0.9,
            sqnr_db=30.5,
            int8_mac_percent=95.5,
        ),
        calibration=m.Calibration(
            method="entropy", samples=1000, data_sha256="0" * 64, table="affine/int8.onnx"
        ),
        provenance=m.Provenance(source="tests", opset=17, exporter="tests", tools={"torch": "2"}),
    )
    artifacts = tuple(
        m.Artifact(path=path, size=len(content), sha256="0123456789abcdef" * 4)
        for path, content in sorted(files.items())
    )
    return replace(manifest, artifacts=artifacts, models=(model,))


MANIFEST = full_manifest()
CONTENT = bytes_from_manifest(MANIFEST)


def spelled(document: object) -> bytes:
    """Return the canonical bytes by the standard library alone."""
    return (json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def altered(change: Change) -> bytes:
    document = json.loads(CONTENT)
    change(document)
    return spelled(document)


def refused(content: bytes) -> str:
    with pytest.raises(BundleError) as caught:
        manifest_from_bytes(content)
    message = str(caught.value)
    assert message.startswith("manifest.json")
    return message


def is_refused(content: bytes) -> bool:
    """Whether content is refused; any error that is not a BundleError fails the test."""
    try:
        manifest_from_bytes(content)
    except BundleError:
        return True
    return False
