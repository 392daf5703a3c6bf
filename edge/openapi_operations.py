"""What can be asked of the agent: a method of a path, what it takes and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edge import openapi_answers as answers
from edge import openapi_chat
from edge.capture.capture_file import CAPTURE_PATH, STATE_HEADER
from edge.capture.recording import Wish
from edge.chat.answer import EVENTS
from edge.chat.openai_request import ChatCompletionRequest, CompletionRequest
from edge.chat.plain import PlainRequest
from edge.embeddings import EmbeddingsRequest
from edge.extensions import ChangeRequest, IndexRequest
from edge.history.history import HistoryReport
from edge.log_tail import LogReport
from edge.metrics import CONTENT_TYPE as METRICS_CONTENT_TYPE
from edge.oip import JSON_LENGTH_HEADER, RequestHead
from edge.predict import TextRequest
from edge.telemetry import Report

Json = dict[str, Any]

OPENAPI_PATH = "/openapi.json"
MODEL = "/v2/models/{MODEL_NAME}"
VERSION = f"{MODEL}/versions/{{MODEL_VERSION}}"

JSON = "application/json"
BINARY = "application/octet-stream"
TEXT = "text/plain"
BYTES: Json = {}  # any bytes: the content type says how they are read

_RUN = (404, 415, 429, 504)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path.

    answer, body: by content type a type, several of which one is met, or a schema. failure: type
    of errors; what is refused before its path is known has the plain form everywhere.
    """

    path: str
    method: str
    id: str
    summary: str
    answer: dict[str, Any]
    statuses: tuple[int, ...] = ()
    body: dict[str, Any] | None = None
    needs_body: bool = False
    parameters: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    failure: type = answers.Failure


def _get(path: str, id_: str, summary: str, answer: Any) -> Operation:
    statuses = (404,) if "{" in path else ()
    return Operation(
        path=path, method="get", id=id_, summary=summary, answer={JSON: answer}, statuses=statuses
    )


def _change(verb: str, summary: str, statuses: tuple[int, ...]) -> Operation:
    return Operation(
        path=f"/v2/repository/models/{{MODEL_NAME}}/{verb}",
        method="post",
        id=f"{verb}Model",
        summary=summary,
        answer={JSON: answers.Done},
        statuses=statuses,
        body={JSON: ChangeRequest},
    )


def _of_model(suffix: str, id_: str, summary: str, answer: Any) -> tuple[Operation, Operation]:
    return (
        _get(MODEL + suffix, id_, summary, answer),
        _get(VERSION + suffix, f"{id_}OfVersion", summary, answer),
    )


def _infer(path: str, id_: str) -> Operation:
    return Operation(
        path=path,
        method="post",
        id=id_,
        summary="Run a model on tensors, in JSON or binary.",
        answer={JSON: answers.InferenceResponse, BINARY: BYTES},
        statuses=_RUN,
        body={JSON: RequestHead, BINARY: BYTES},
        needs_body=True,
        parameters=("JsonLength", "TimeoutMs", "Test", "ContentEncoding", "AcceptEncoding"),
        headers=(JSON_LENGTH_HEADER,),
    )


def _capture(
    method: str, id_: str, summary: str, statuses: tuple[int, ...], body: Any = None
) -> Operation:
    is_frames = method != "delete"
    return Operation(
        path=CAPTURE_PATH,
        method=method,
        id=id_,
        summary=summary,
        answer={BINARY: BYTES} if is_frames else {JSON: answers.Done},
        statuses=(403, *statuses),
        body=None if body is None else {JSON: body},
        headers=(STATE_HEADER,) if is_frames else (),
    )


def _chat(path: str, id_: str, summary: str, asked: Any, answer: Any) -> Operation:
    return Operation(
        path=path,
        method="post",
        id=id_,
        summary=summary,
        answer={JSON: answer, EVENTS: {"type": "string"}},
        statuses=_RUN,
        body={JSON: asked},
        needs_body=True,
        parameters=("ContentEncoding", "AcceptEncoding"),
        failure=answers.OpenAiFailure,
    )


_IMAGES: Json = {
    "type": "object",
    "properties": {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}},
    "required": ["image"],
}

OPERATIONS: tuple[Operation, ...] = (
    _get("/v2/health/live", "isLive", "Whether the agent answers.", answers.Live),
    _get("/v2/health/ready", "isReady", "Whether every model works.", answers.Ready),
    _get("/v2", "serverMetadata", "The agent and its extensions.", answers.ServerMetadata),
    *_of_model("", "modelMetadata", "A model's inputs and outputs.", answers.ModelMetadata),
    *_of_model("/ready", "isModelReady", "Whether a model works.", answers.ModelReady),
    *_of_model("/config", "modelConfig", "A model's Triton configuration.", answers.ModelConfig),
    *_of_model("/stats", "modelStatistics", "A model's counters.", answers.Statistics),
    _get("/v2/models/stats", "statistics", "The counters of all models.", answers.Statistics),
    _infer(f"{MODEL}/infer", "infer"),
    _infer(f"{VERSION}/infer", "inferOfVersion"),
    Operation(
        path="/v2/repository/index",
        method="post",
        id="repositoryIndex",
        summary="The models that are served or could be.",
        answer={JSON: tuple[answers.IndexEntry, ...]},
        statuses=(429,),
        body={JSON: IndexRequest},
    ),
    _change("load", "Open a model, anew if it is open.", (404, 409, 429)),
    _change("unload", "Close a model when its last request is answered.", (404, 429)),
    Operation(
        path="/predict/{MODEL_NAME}",
        method="post",
        id="predict",
        summary="Run a model on images or text.",
        answer={JSON: (answers.Predictions, answers.Detections, answers.InferenceResponse)},
        statuses=(*_RUN, 409),
        body={
            "multipart/form-data": _IMAGES,
            "image/*": BYTES,
            JSON: TextRequest,
        },
        needs_body=True,
        parameters=("TimeoutMs", "Test", "AcceptEncoding"),
    ),
    Operation(
        path="/v1/embeddings",
        method="post",
        id="embeddings",
        summary="The vectors of texts, as OpenAI's clients ask for them.",
        answer={JSON: answers.Embeddings},
        statuses=(*_RUN, 409),
        body={JSON: EmbeddingsRequest},
        needs_body=True,
        failure=answers.OpenAiFailure,
    ),
    _chat(
        "/v1/chat/completions",
        "chatCompletion",
        "The answer to a conversation, as OpenAI's clients ask for it.",
        ChatCompletionRequest,
        openapi_chat.ChatCompletion,
    ),
    _chat(
        "/v1/completions",
        "completion",
        "The continuation of a text, as OpenAI's clients ask for it.",
        CompletionRequest,
        openapi_chat.Completion,
    ),
    Operation(
        path="/chat",
        method="post",
        id="ask",
        summary="The answer to a question.",
        answer={JSON: openapi_chat.PlainAnswer, TEXT: {"type": "string"}},
        statuses=_RUN,
        body={JSON: PlainRequest},
        needs_body=True,
        parameters=("ContentEncoding", "AcceptEncoding"),
    ),
    Operation(
        path="/chat",
        method="get",
        id="chatPage",
        summary="A page to chat in.",
        answer={"text/html": {"type": "string"}},
    ),
    Operation(
        path="/v1/models",
        method="get",
        id="openAiModels",
        summary="The models, as OpenAI's clients list them.",
        answer={JSON: answers.OpenAiModels},
        failure=answers.OpenAiFailure,
    ),
    Operation(
        path="/v1/models/{MODEL_NAME}",
        method="get",
        id="openAiModel",
        summary="One model, as OpenAI's clients list it.",
        answer={JSON: answers.OpenAiModel},
        statuses=(404,),
        failure=answers.OpenAiFailure,
    ),
    _capture("post", "beginCapture", "Record requests; gives the head of a file.", (409,), Wish),
    _capture("get", "fetchCapture", "What the file holds next; its end when it is over.", (404,)),
    _capture("delete", "endCapture", "Record no more; what is held can be fetched.", (404,)),
    Operation(
        path="/",
        method="get",
        id="dashboard",
        summary="The page that shows all this to people.",
        answer={"text/html": {"type": "string"}},
    ),
    _get("/telemetry", "telemetry", "What is served, why, how fast, and on what.", Report),
    Operation(
        path="/telemetry/history",
        method="get",
        id="history",
        summary="How the last day was, a point every ten seconds.",
        answer={JSON: HistoryReport},
        parameters=("Since", "Seconds", "Points"),
    ),
    _get("/telemetry/log", "log", "The last lines of the agent's log.", LogReport),
    Operation(
        path="/metrics",
        method="get",
        id="metrics",
        summary="Everything that Prometheus collects.",
        answer={METRICS_CONTENT_TYPE.partition(";")[0]: {"type": "string"}},
    ),
    _get(OPENAPI_PATH, "openApi", "This document.", {"type": "object"}),
)
