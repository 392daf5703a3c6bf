"""The Manifest: the signed JSON that says what a bundle holds, how it was made and how it ran.

Its bytes are canonical (sorted keys, one-space indent, one newline at the end): parsing refuses
any other spelling, so duplicate keys, unknown fields and trailing bytes cannot hide in it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import msgspec

from edge.errors import BundleError
from edge.spec import Datatype, Profile, TensorSpec

SCHEMA_VERSION = 1
MAX_MANIFEST_BYTES = 4 << 20
MAX_ARTIFACTS = 4096
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

Precision = Literal["fp32", "fp16", "int8"]
Backend = Literal["ort", "trt", "trt-rtx"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A file of the bundle, stored at blobs/sha256/<sha256>; path is its name for people."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """How one variant ran on one machine; milliseconds per request of `batch` rows."""

    device: str
    runtime: str
    threads: int
    batch: int
    runs: int
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One runnable form of a model: an ONNX graph or an engine, with the backend that opens it.

    files: every artifact that must be present to open it, the graph or engine itself first.
    """

    id: str
    backend: Backend
    precision: Precision
    files: tuple[str, ...]
    measurements: tuple[Measurement, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """Which variant to serve on a backend, and the measurement that decided it, in words."""

    backend: Backend
    variant: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenTensor:
    """One tensor of a golden case: raw little-endian bytes in an artifact."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    artifact: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenCase:
    """Feeds and the fp32 outputs they must give."""

    inputs: tuple[GoldenTensor, ...]
    outputs: tuple[GoldenTensor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """The self-test: for every output, ||y - golden|| / ||golden|| <= tolerance[precision]."""

    cases: tuple[GoldenCase, ...]
    tolerance: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """int8 against fp32 on samples that calibration never saw; percent, ratios and decibels."""

    samples: int
    labelled: bool
    fp32_top1_percent: float | None = None
    int8_top1_percent: float | None = None
    argmax_agreement_percent: float | None = None
    cosine_mean: float
    cosine_min: float
    sqnr_db: float
    int8_mac_percent: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Where the int8 ranges come from."""

    method: str
    samples: int
    data_sha256: str
    table: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """How the model came to be: source, exporter, versions of the tools."""

    source: str
    opset: int
    exporter: str
    tools: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One served model: its interface, its variants, and the evidence for them."""

    name: str
    version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profile: Profile
    variants: tuple[Variant, ...]
    preferences: tuple[Preference, ...]
    golden: Golden
    accuracy: Accuracy | None = None
    calibration: Calibration | None = None
    provenance: Provenance


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The content of manifest.json."""

    schema: int
    name: str
    version: str
    created: str
    artifacts: tuple[Artifact, ...]
    models: tuple[Model, ...]

    def artifact(self, path: str) -> Artifact:
        """Return the artifact with this path; parsing has proved that it exists."""
        return next(a for a in self.artifacts if a.path == path)


def bytes_from_manifest(manifest: Manifest) -> bytes:
    """Return the canonical bytes: the only spelling that `manifest_from_bytes` accepts."""
    compact = msgspec.json.encode(manifest, order="sorted")
    return msgspec.json.format(compact, indent=1) + b"\n"


def manifest_from_bytes(content: bytes) -> Manifest:
    """Return the Manifest that content spells.

    Raises BundleError if content is not canonical, has unknown, missing or ill-typed fields, or
    refers to an artifact or variant that it does not list.
    """
    if len(content) > MAX_MANIFEST_BYTES:
        raise BundleError(f"manifest.json is larger than {MAX_MANIFEST_BYTES} bytes")
    try:
        header = msgspec.json.decode(content, type=_Header)
        if header.schema != SCHEMA_VERSION:
            raise BundleError(
                f"manifest.json has schema {header.schema}, this agent reads {SCHEMA_VERSION}; "
                "install the edge-kit version that packed the bundle, or pack it again"
            )
        manifest = msgspec.json.decode(content, type=Manifest)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BundleError(f"manifest.json is malformed: {error}; pack the bundle again") from error
    if bytes_from_manifest(manifest) != content:
        raise BundleError(
            "manifest.json is not in canonical form, or has a field this agent does not know; "
            "pack the bundle again"
        )
    _check_references(manifest)
    return manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    schema: int


def _check_references(manifest: Manifest) -> None:
    def require(condition: bool, problem: str) -> None:
        if not condition:
            raise BundleError(f"manifest.json: {problem}; pack the bundle again")

    require(
        _NAME.fullmatch(manifest.name) is not None, f"bundle name {manifest.name!r} is not plain"
    )
    require(len(manifest.artifacts) <= MAX_ARTIFACTS, f"more than {MAX_ARTIFACTS} artifacts")
    require(len(manifest.models) > 0, "no model")
    paths = {artifact.path for artifact in manifest.artifacts}
    require(len(paths) == len(manifest.artifacts), "two artifacts have the same path")
    for artifact in manifest.artifacts:
        require(_SHA256.fullmatch(artifact.sha256) is not None, f"bad digest of {artifact.path!r}")
        require(artifact.size >= 0, f"bad size of {artifact.path!r}")
    names = [model.name for model in manifest.models]
    require(len(set(names)) == len(names), "two models have the same name")
    for model in manifest.models:
        require(_NAME.fullmatch(model.name) is not None, f"model name {model.name!r} is not plain")
        variants = {variant.id: variant for variant in model.variants}
        require(len(variants) == len(model.variants), f"model {model.name!r}: variant ids repeat")
        require(len(variants) > 0, f"model {model.name!r} has no variant")
        require(len(model.golden.cases) > 0, f"model {model.name!r} has no golden case")
        used = [path for variant in model.variants for path in variant.files]
        for case in model.golden.cases:
            used += [tensor.artifact for tensor in (*case.inputs, *case.outputs)]
        if model.calibration is not None:
            used.append(model.calibration.table)
        for path in used:
            require(path in paths, f"model {model.name!r} names the unlisted file {path!r}")
        for variant in model.variants:
            require(len(variant.files) > 0, f"variant {variant.id!r} has no file")
            tolerance = model.golden.tolerance.get(variant.precision)
            require(tolerance is not None, f"no golden tolerance for {variant.precision}")
        for preference in model.preferences:
            chosen = variants.get(preference.variant)
            require(
                chosen is not None and chosen.backend == preference.backend,
                f"preference for {preference.backend} names no such variant",
            )
