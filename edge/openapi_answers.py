"""The JSON answers that are written down nowhere else as types, for the OpenAPI document.

What is sent is checked against them: by tests, and by schemathesis with the document.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from edge.classes import Guess
from edge.detections import Found
from edge.spec import Datatype


class _Answer(msgspec.Struct, forbid_unknown_fields=True):
    """An object that has these fields and no others."""


class Failure(_Answer):
    """What happened, to which object, and what to do; ready: false where readiness was asked."""

    error: str
    ready: bool | UnsetType = UNSET


class Live(_Answer):
    """The agent answers."""

    live: bool


class Ready(_Answer):
    """Every model works."""

    ready: bool


class ModelReady(_Answer):
    """This model works."""

    name: str
    ready: bool


class Done(_Answer):
    """It was done; there is nothing more to say."""


class ServerMetadata(_Answer):
    """The agent, and which extensions of the protocol it knows."""

    name: str
    version: str
    extensions: tuple[str, ...]


class TensorMetadata(_Answer):
    """An input or output; -1 for a dimension that varies, the batch among them."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]


class ModelMetadata(_Answer):
    """A model's interface."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


class TensorConfig(_Answer):
    """An input or output; dims leave out the batch where max_batch_size is not 0."""

    name: str
    data_type: str
    dims: tuple[int, ...]


class ModelConfig(_Answer):
    """Triton's ModelConfig, as far as it applies."""

    name: str
    platform: str
    backend: str
    version_policy: dict[str, dict[str, int]]
    max_batch_size: int
    input: tuple[TensorConfig, ...]
    output: tuple[TensorConfig, ...]
    instance_group: tuple[dict[str, str | int], ...]
    model_transaction_policy: dict[str, bool]
    parameters: dict[str, Any]
    dynamic_batching: dict[str, int | list[int]] | UnsetType = UNSET


class Duration(_Answer):
    """How many of something took how long together."""

    count: int
    ns: int


class InferenceStatistics(_Answer):
    """Stages of requests."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration
    cache_miss: Duration


class BatchStatistics(_Answer):
    """Runs of one size."""

    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class MemoryUsage(_Answer):
    """Memory that a model takes."""

    type: Literal["CPU", "CPU_PINNED", "GPU"]
    id: int
    byte_size: int


class ModelStatistics(_Answer):
    """Counters of one model; last_inference in milliseconds since 1970, 0 for never."""

    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: InferenceStatistics
    response_stats: dict[str, Any]
    batch_stats: tuple[BatchStatistics, ...]
    memory_usage: tuple[MemoryUsage, ...]


class Statistics(_Answer):
    """Counters of the models that are open."""

    model_stats: tuple[ModelStatistics, ...]


class IndexEntry(_Answer):
    """A model of the bundle; reason: why it is not ready."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE", "LOADING", "UNLOADING"]
    reason: str


class ResponseParameters(_Answer):
    """Bytes of the tensor behind the JSON part."""

    binary_data_size: int


class ResponseOutput(_Answer):
    """One output, with its values, row-major and flat, or with parameters."""

    name: str
    shape: tuple[int, ...]
    datatype: Datatype
    data: tuple[bool | float | str, ...] | UnsetType = UNSET
    parameters: ResponseParameters | UnsetType = UNSET


class InferenceResponse(_Answer):
    """The outputs of a model; id: that of the request, if it had one."""

    model_name: str
    model_version: str
    outputs: tuple[ResponseOutput, ...]
    id: str | UnsetType = UNSET


class Predictions(_Answer):
    """The best classes of every row of a classifier, the best first."""

    model_name: str
    model_version: str
    predictions: tuple[tuple[Guess, ...], ...]


class Detections(_Answer):
    """The boxes of every image, the best first, in pixels of the image."""

    model_name: str
    model_version: str
    detections: tuple[tuple[Found, ...], ...]


class Embedding(msgspec.Struct, frozen=True):
    """The vector of one text: numbers, or their little-endian FP32 in base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(msgspec.Struct, frozen=True):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(msgspec.Struct, frozen=True):
    """One vector for each text."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class OpenAiModel(msgspec.Struct, frozen=True):
    """A model, as OpenAI's clients list it."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class OpenAiModels(msgspec.Struct, frozen=True):
    """The models that embed."""

    object: Literal["list"]
    data: list[OpenAiModel]


class OpenAiError(msgspec.Struct, frozen=True):
    """What happened."""

    message: str
    type: str
    param: str | None = None
    code: str | int | None = None


class OpenAiFailure(msgspec.Struct, frozen=True):
    """A failure, as OpenAI's clients read it."""

    error: OpenAiError
