"""`POST /v1/embeddings` and the list of models, in the shape that OpenAI's clients read.

A model is an encoder if its Manifest names the output that holds a vector a text. Inputs are texts,
or token ids that the client made; more than the model takes at once run one batch after the other.
"""

from __future__ import annotations

import base64
import functools
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import numpy as np

from edge.asked import MAX_PARTS, Asked
from edge.errors import EdgeError, InferenceError, InputError, UnknownModelError
from edge.http_answer import HttpAnswer, answer_from_error, too_large
from edge.manifest import Model
from edge.predict import tokenizer_of
from edge.serving import ServedModel, Serving
from edge.spec import AnyArray, check_feeds
from edge.text import Tokenizer, Tokens

# The model's name is found in the event loop; 6 ms for so much. OpenAI's own limit of 300,000
# tokens a request is about 1.2 MB of English.
MAX_BODY_BYTES = 2 << 20
MAX_INPUTS = 2048  # as OpenAI's

_T = TypeVar("_T")
_TYPE_FROM_STATUS = {
    400: "invalid_request_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    409: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


class FieldError(InputError):
    """A field of the request is wrong; `field` names it."""

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


class _Addressed(msgspec.Struct, frozen=True):
    model: str


class EmbeddingsRequest(msgspec.Struct, frozen=True):
    """Texts to embed, or tokens, as OpenAI's clients send them."""

    model: str
    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None
    user: str | None = None


_ADDRESSED = msgspec.json.Decoder(_Addressed)
_REQUEST = msgspec.json.Decoder(EmbeddingsRequest)
_PLACE = re.compile(r"at `\$\.(\w+)")


def model_of(body: bytes) -> str:
    """Return the model that a request names; the rest of it is skipped.

    Raises InputError if it names none, or is larger than MAX_BODY_BYTES.
    """
    if len(body) > MAX_BODY_BYTES:
        raise too_large(MAX_BODY_BYTES)
    return _decoded(_ADDRESSED, body).model


def asked_from_body(body: bytes, served: ServedModel) -> Asked:
    """Return what a request asks of an encoder.

    Raises InputError for what the model does not take, BackendUnavailableError if its tokenizer
    is not there.
    """
    model = served.model
    if model.embedding is None or model.text is None:
        raise FieldError(
            f"model {model.name!r} is no encoder of texts; see GET /v1/models", "model"
        )
    request = _decoded(_REQUEST, body)
    width = _width(model, model.embedding)
    if request.dimensions not in {None, width}:
        raise FieldError(
            f"dimensions {request.dimensions} is not supported: model {model.name!r} was not "
            f"trained for shorter vectors than its {width}; cut them yourself if you know better",
            "dimensions",
        )
    tokenizer = tokenizer_of(served)
    try:
        rows = _tokens(request.input, tokenizer)
        parts, order = _parts(rows, served, tokenizer)
    except FieldError:
        raise
    except InputError as error:
        raise FieldError(str(error), "input") from error
    encode = functools.partial(
        _encoded,
        model,
        order=order,
        tokens=sum(map(len, rows)),
        as_base64=request.encoding_format == "base64",
    )
    return Asked(parts=parts, encode=encode)


def error_answer(error: EdgeError) -> HttpAnswer:
    """Return the answer for an error, as OpenAI's clients read it."""
    param = error.field if isinstance(error, FieldError) else None
    if isinstance(error, UnknownModelError):
        return in_openai_form(answer_from_error(error), param="model", code="model_not_found")
    return in_openai_form(answer_from_error(error), param=param, code=error.code)


def in_openai_form(
    answer: HttpAnswer, *, param: str | None = None, code: str | None = None
) -> HttpAnswer:
    """Return an answer `{"error": message}` in the form that OpenAI's clients read."""
    message = msgspec.json.decode(answer.body)["error"]
    kind = _TYPE_FROM_STATUS.get(answer.status, "server_error")
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return HttpAnswer(
        status=answer.status, body=msgspec.json.encode(body), headers=dict(answer.headers)
    )


def model_list(serving: Serving) -> dict[str, Any]:
    """Return the encoders that are served, or could be."""
    encoders = [model for model in serving.models if _is_encoder(model)]
    return {"object": "list", "data": [_listed(serving, model) for model in encoders]}


def model_entry(serving: Serving, name: str) -> dict[str, Any]:
    """Return one encoder; raises UnknownModelError."""
    model = serving.model(name, None)
    if not _is_encoder(model):
        raise UnknownModelError(f"model {name!r} is no encoder of texts; see GET /v1/models")
    return _listed(serving, model)


def _is_encoder(model: Model) -> bool:
    return model.embedding is not None and model.text is not None


def _listed(serving: Serving, model: Model) -> dict[str, Any]:
    served = serving.served.get(model.name)
    manifest = (serving.bundle if served is None else served.bundle).manifest
    created = datetime.fromisoformat(manifest.created.replace("Z", "+00:00"))
    return {
        "id": model.name,
        "object": "model",
        "created": int(created.timestamp()),
        "owned_by": manifest.name,
    }


def _decoded(decoder: msgspec.json.Decoder[_T], body: bytes) -> _T:
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        place = _PLACE.search(str(error))
        message = f"the body is no request for embeddings: {error}"
        if place is None:
            raise InputError(message) from error
        raise FieldError(message, place[1]) from error


def _width(model: Model, output: str) -> int:
    (width,) = (spec.shape[1] for spec in model.outputs if spec.name == output)
    assert isinstance(width, int)  # noqa: S101 - checked with the Manifest
    return width


def _tokens(given: str | list[str | int | list[int]], tokenizer: Tokenizer) -> list[Tokens]:
    inputs = [given] if isinstance(given, str) else given
    texts = [one for one in inputs if isinstance(one, str)]
    ids = [one for one in inputs if isinstance(one, int)]
    lists = [one for one in inputs if isinstance(one, list)]
    count = 1 if ids else len(inputs)
    if not 0 < count <= MAX_INPUTS:
        raise InputError(f"input holds {count} texts; send 1..{MAX_INPUTS} at once")
    if texts and not ids and not lists:
        return tokenizer.tokens_of_texts(texts)
    if ids and not texts and not lists:
        return tokenizer.tokens_of_ids([ids])
    if lists and not texts and not ids:
        return tokenizer.tokens_of_ids(lists)
    raise InputError("input mixes texts and tokens; send one kind")


def _parts(
    rows: Sequence[Tokens], served: ServedModel, tokenizer: Tokenizer
) -> tuple[tuple[Mapping[str, AnyArray], ...], AnyArray]:
    """Return the batches to run, and which text each row of theirs is.

    Texts of like length come together, so that little is padded; batches are of like size.
    """
    model = served.model
    most = model.profile.ranges[tokenizer.how.ids].max[0]
    if served.worker.max_batch_rows > 1:
        most = min(most, served.worker.max_batch_rows)
    count = -(-len(rows) // most)
    if count > MAX_PARTS:
        raise InputError(
            f"input holds {len(rows)} texts, model {model.name!r} takes {MAX_PARTS} times {most}; "
            "send fewer at once"
        )
    order = np.argsort([len(row) for row in rows], kind="stable")
    parts = []
    for numbers in np.array_split(order, count):
        feeds = tokenizer.feeds([rows[n] for n in numbers], model.inputs, model.profile)
        check_feeds(feeds, model.inputs, model.profile)
        parts.append(feeds)
    return tuple(parts), order


def _encoded(
    model: Model,
    outputs: Mapping[str, AnyArray],
    *,
    order: AnyArray,
    tokens: int,
    as_base64: bool,
) -> HttpAnswer:
    assert model.embedding is not None  # noqa: S101 - asked_from_body
    vectors = np.empty((len(order), _width(model, model.embedding)), "<f4")
    vectors[order] = outputs[model.embedding]
    if not np.isfinite(vectors).all():
        raise InferenceError(f"model {model.name!r}: a vector holds NaN or an infinity")
    written: list[Any] = vectors.tolist()
    if as_base64:
        written = [base64.b64encode(row.tobytes()).decode("ascii") for row in vectors]
    body = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(written)
        ],
        "model": model.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return HttpAnswer(status=200, body=msgspec.json.encode(body))
