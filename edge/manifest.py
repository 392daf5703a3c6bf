"""The Manifest: the signed JSON that says what a bundle holds, how it was made and how it ran.

`manifest_reading` reads it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec

from edge.chat.facts import ChatFacts
from edge.chat.quality_facts import ChatQuality
from edge.chat.spec import DecoderSpec
from edge.classes import Classes
from edge.detections import Detection
from edge.images import ImagePreprocessing
from edge.spec import Datatype, Profile, TensorSpec
from edge.text import TextPreprocessing

SCHEMA_VERSION = 3
MAX_MANIFEST_BYTES = 4 << 20
MAX_ARTIFACTS = 4096
# Tensors of a chat model's golden cases.
TOKENS, LOGITS = "tokens", "logits"
MAX_VERSION_CHARACTERS = 200  # of a bundle; slots, channels and reports repeat it
MAX_COUNT = 2**63 - 1  # of bytes in a file, or values along an axis
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]
# "w8a8": weights and activations of a chat model; its "int8" and "int4" are weights alone.
Precision = Literal["fp32", "fp16", "int8", "w8a8", "int4"]
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
    counts them after fusion; empty where TensorRT does not tell. tried: whether it ran and passed
    a self-test where it was built; an engine for a card that is not there is built only.
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
    tried: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One form of a model, with the backend that runs it.

    For "ort" the first file is an ONNX graph; for "trt" and "trt-rtx" it is an engine if `engine`
    is given, else an ONNX graph to build one from on the device.
    files: every artifact that must be present, that one first. typed: whether the graph is for a
    TensorRT that takes precision from types alone (10.12 and later, and TensorRT-RTX) or for one
    that takes it from flags; None is both. build_for: devices that it was packed to be built on,
    for people; any device may. memory_bytes: for "ort", what a process grows by at most while it
    opens the graph and runs the profile's largest shape; 0 if it was not measured. decoder: what
    the graph of a chat model is; its cache comes on top of memory_bytes. quality: of a chat model.
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
    decoder: DecoderSpec | None = None
    quality: ChatQuality | None = None


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
    (batch, values) that holds a vector a text. chat: of a model that talks; it has no inputs,
    outputs and profile of its own, and its golden cases are "tokens" INT64 [n] with the "logits"
    FP32 [rows, vocabulary] after the last of them.
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
    chat: ChatFacts | None = None
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


def problem_with_version(version: str) -> str | None:
    """Return what a bundle's version "is" or "has" that it must not; else it is any text."""
    if not version:
        return "is empty"
    if len(version) > MAX_VERSION_CHARACTERS:
        return f"has {len(version)} characters, and {MAX_VERSION_CHARACTERS} are the most"
    return None if version.isprintable() else "has a character that cannot be printed"


def bytes_from_manifest(manifest: Manifest) -> bytes:
    """Return the canonical bytes: the only spelling that `manifest_from_bytes` accepts."""
    compact = msgspec.json.encode(manifest, order="sorted")
    return msgspec.json.format(compact, indent=1) + b"\n"
