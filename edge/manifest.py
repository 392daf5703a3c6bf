"""The Manifest: the signed JSON that says what a bundle holds, how it was made and how it ran.

Its bytes are canonical (sorted keys, one-space indent, one newline at the end): parsing refuses
any other spelling, so duplicate keys, unknown fields and trailing bytes cannot hide in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec

from edge import classes as class_names
from edge import detections as boxes
from edge import images, text
from edge.classes import Classes
from edge.detections import Detection
from edge.errors import BundleError
from edge.images import ImagePreprocessing
from edge.spec import Datatype, Profile, TensorSpec
from edge.text import TextPreprocessing

SCHEMA_VERSION = 2
MAX_MANIFEST_BYTES = 4 << 20
MAX_ARTIFACTS = 4096
MAX_COUNT = 2**63 - 1  # of bytes in a file, or values along an axis
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]
Precision = Literal["fp32", "fp16", "int8"]
Backend = Literal["ort", "trt", "trt-rtx"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A file of the bundle, stored at blobs/sha256/<sha256>; path is its name for people."""

    path: str
    size: Count
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """How one variant ran on one machine; milliseconds per request of `batch` rows."""

    device: str
    runtime: str
    threads: Count
    batch: Count
    runs: Count
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What an engine was built for and with; a device that differs must not open it.

    device: key of the table in `devices`, or the name of the GPU. runtime: full version of
    TensorRT or TensorRT-RTX. sms: compute capabilities it runs on, such as ("8.6", "8.9").
    portable: whether it runs on every device of these SMs, not on `device` alone. sm_count: of
    `device`, None if unknown. cuda: what the driver must run at least, None if any will do.
    memory_bytes: device memory that a session takes, 0 if it was not measured.
    plugins: layers from outside TensorRT. layers: their number by precision, as the inspector
    counts them after fusion; empty where TensorRT does not tell.
    """

    device: str
    kind: Literal["jetson", "desktop"]
    arch: str
    runtime: str
    sms: tuple[str, ...]
    portable: bool
    sm_count: Count | None = None
    cuda: str | None = None
    memory_bytes: Count = 0
    dla_cores: Count = 0
    plugins: tuple[str, ...] = ()
    layers: dict[str, Count] = field(default_factory=dict)
    build_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One form of a model, with the backend that runs it.

    For "ort" the first file is an ONNX graph; for "trt" and "trt-rtx" it is an engine if `engine`
    is given, else an ONNX graph to build one from on the device.
    files: every artifact that must be present, that one first. typed: whether the graph is for a
    TensorRT that takes precision from types alone (10.12 and later, and TensorRT-RTX) or for one
    that takes it from flags; None is both. build_for: devices that it was packed to be built on,
    for people; any device may. memory_bytes: for "ort", what a process grows by at most while it
    opens the graph and runs the profile's largest shape; 0 if it was not measured.
    """

    id: str
    backend: Backend
    precision: Precision
    files: tuple[str, ...]
    measurements: tuple[Measurement, ...] = ()
    engine: EngineFacts | None = None
    typed: bool | None = None
    build_for: tuple[str, ...] = ()
    memory_bytes: Count = 0


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
    shape: tuple[Count, ...]
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
class Batching:
    """That rows do not see each other, so that requests may run as one; tried when packed.

    ragged: a dimension in which requests may differ too, because the model ignores padding at its
    end. pads: what is padded with, by input that has it. multiple: of padded lengths.
    """

    ragged: str | None = None
    pads: dict[str, int] = field(default_factory=dict)
    multiple: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """int8 against fp32 on samples that calibration never saw; percent, ratios and decibels."""

    samples: Count
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
    samples: Count
    data_sha256: str
    table: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """How the model came to be: source, exporter, versions of the tools."""

    source: str
    opset: Count
    exporter: str
    tools: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One served model: its interface, its variants, and the evidence for them.

    image, text: how an encoded image or a text becomes the model's input, if it may be fed so.
    batching: None keeps every request a run of its own. classes, detection: what the scores of a
    classifier, or the boxes of a detector, mean. embedding: of an encoder, the output of shape
    (batch, values) that holds a vector a text.
    """

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
    image: ImagePreprocessing | None = None
    text: TextPreprocessing | None = None
    batching: Batching | None = None
    classes: Classes | None = None
    detection: Detection | None = None
    embedding: str | None = None
    provenance: Provenance

    @property
    def max_batch_size(self) -> int:
        """The largest batch, or 0 for a model whose tensors do not all begin with one."""
        first = {spec.shape[0] if spec.shape else 0 for spec in (*self.inputs, *self.outputs)}
        is_batched = len(first) == 1 and isinstance(next(iter(first)), str)
        sizes = [bounds.max[0] for bounds in self.profile.ranges.values() if bounds.max]
        return min(sizes) if is_batched and sizes else 0


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


def is_plain_name(name: str) -> bool:
    """Whether a bundle or model may be called so: letters, digits, dot, dash, underscore."""
    return _NAME.fullmatch(name) is not None


def bytes_from_manifest(manifest: Manifest) -> bytes:
    """Return the canonical bytes: the only spelling that `manifest_from_bytes` accepts."""
    compact = msgspec.json.encode(manifest, order="sorted")
    return msgspec.json.format(compact, indent=1) + b"\n"


def manifest_from_bytes(content: bytes) -> Manifest:
    """Return the Manifest that content spells.

    Raises BundleError if content is not canonical, has unknown, missing or ill-typed fields,
    refers to an artifact or variant that it does not list, or bounds an input it does not have.
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


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise BundleError(f"manifest.json: {problem}; pack the bundle again")


def _check_references(manifest: Manifest) -> None:
    _require(is_plain_name(manifest.name), f"bundle name {manifest.name!r} is not plain")
    _require(manifest.version != "", "the bundle version is empty")
    _require(len(manifest.artifacts) <= MAX_ARTIFACTS, f"more than {MAX_ARTIFACTS} artifacts")
    _require(len(manifest.models) > 0, "no model")
    paths = {artifact.path for artifact in manifest.artifacts}
    _require(len(paths) == len(manifest.artifacts), "two artifacts have the same path")
    for artifact in manifest.artifacts:
        parts = artifact.path.split("/")
        _require(parts[0] != "" and ".." not in parts, f"bad path {artifact.path!r}")
        _require(_SHA256.fullmatch(artifact.sha256) is not None, f"bad digest of {artifact.path!r}")
    names = [model.name for model in manifest.models]
    _require(len(set(names)) == len(names), "two models have the same name")
    for model in manifest.models:
        _require(is_plain_name(model.name), f"model name {model.name!r} is not plain")
        _require(is_plain_name(model.version), f"model version {model.version!r} is not plain")
        _check_interface(model)
        _check_variants(model, paths)


def _check_interface(model: Model) -> None:
    for specs in (model.inputs, model.outputs):
        names = {spec.name for spec in specs}
        _require(len(names) == len(specs), f"model {model.name!r}: tensor names repeat")
        _require("" not in names, f"model {model.name!r}: a tensor has no name")
        dims = [dim for spec in specs for dim in spec.shape if isinstance(dim, int)]
        _require(all(0 <= dim <= MAX_COUNT for dim in dims), f"model {model.name!r}: bad shape")
    ranks = {spec.name: len(spec.shape) for spec in model.inputs}
    for name, bounds in model.profile.ranges.items():
        _require(name in ranks, f"the profile names the unknown input {name!r}")
        sizes = (bounds.min, bounds.opt, bounds.max)
        _require({len(shape) for shape in sizes} == {ranks[name]}, f"profile rank of {name!r}")
        ordered = all(0 <= a <= b <= c <= MAX_COUNT for a, b, c in zip(*sizes, strict=True))
        _require(ordered, f"profile of {name!r} is not min <= opt <= max")
    if model.batching is not None:
        _check_batching(model, model.batching)
    for kind, problem in _interface_problems(model):
        _require(problem is None, f"model {model.name!r}: {kind}: {problem}")


def _interface_problems(model: Model) -> Iterator[tuple[str, str | None]]:
    """Yield what is wrong with each way to feed the model and to read its outputs."""
    if model.image is not None:
        yield "image", images.problem_with(model.image, model.inputs, model.profile)
    if model.text is not None:
        yield "text", text.problem_with(model.text, model.inputs, model.profile)
    if model.classes is not None:
        yield "classes", class_names.problem_with(model.classes, model.outputs)
    if model.detection is not None:
        yield "detection", boxes.problem_with(model.detection, model.image, model.outputs)
    if model.embedding is not None:
        yield "embedding", text.problem_with_vectors(model.embedding, model.outputs)


def _check_batching(model: Model, batching: Batching) -> None:
    specs = (*model.inputs, *model.outputs)
    first = {spec.shape[0] if spec.shape else 0 for spec in specs}
    batch = next(iter(first))
    is_one = len(first) == 1 and isinstance(batch, str) and len(model.inputs) > 0
    _require(is_one, f"model {model.name!r}: batching without a first dimension that varies")
    _require(set(model.profile.ranges) == {s.name for s in model.inputs}, "batching: no profile")
    ragged = {spec.name for spec in model.inputs if batching.ragged in spec.shape}
    text = {spec.name for spec in model.inputs if spec.datatype == "BYTES"}
    _require(not ragged & text, f"model {model.name!r}: strings cannot be padded")
    _require(set(batching.pads) == ragged, f"model {model.name!r}: pads do not fit its inputs")
    twice = any(spec.shape.count(dim) > 1 for spec in specs for dim in (batch, batching.ragged))
    _require(not twice and batching.ragged != batch, f"model {model.name!r}: ragged dimension")


def _check_variants(model: Model, paths: set[str]) -> None:
    variants = {variant.id: variant for variant in model.variants}
    _require(len(variants) == len(model.variants), f"model {model.name!r}: variant ids repeat")
    _require(len(variants) > 0, f"model {model.name!r} has no variant")
    _require(len(model.golden.cases) > 0, f"model {model.name!r} has no golden case")
    used = [path for variant in model.variants for path in variant.files]
    for case in model.golden.cases:
        _require(len(case.outputs) > 0, f"model {model.name!r}: a golden case has no output")
        used += [tensor.artifact for tensor in (*case.inputs, *case.outputs)]
    if model.calibration is not None:
        used.append(model.calibration.table)
    if model.text is not None:
        used.append(model.text.tokenizer)
    for path in used:
        _require(path in paths, f"model {model.name!r} names the unlisted file {path!r}")
    for variant in model.variants:
        _require(variant.id != "", f"model {model.name!r}: a variant has no id")
        _require(len(variant.files) > 0, f"variant {variant.id!r} has no file")
        if variant.engine is not None:
            _require(variant.backend != "ort", f"variant {variant.id!r} is no engine for ort")
            _require(len(variant.engine.sms) > 0, f"engine {variant.id!r} names no SM")
        tolerance = model.golden.tolerance.get(variant.precision)
        _require(tolerance is not None, f"no golden tolerance for {variant.precision}")
    for preference in model.preferences:
        chosen = variants.get(preference.variant)
        _require(
            chosen is not None and chosen.backend == preference.backend,
            f"preference for {preference.backend} names no such variant",
        )
