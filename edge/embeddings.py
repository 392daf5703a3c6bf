"""`POST /v1/embeddings`, in the shape that OpenAI's clients read.

A model is an encoder if its Manifest names the output that holds a vector a text. Inputs are texts,
or token ids that the client made; more than the model takes at once run one batch after the other.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from edge.asked import MAX_PARTS, Asked
from edge.errors import InferenceError, InputError
from edge.http_answer import HttpAnswer, too_large
from edge.manifest import Model
from edge.openai_form import FieldError, decoded
from edge.predict import tokenizer_of
from edge.served import ServedModel
from edge.spec import AnyArray, check_feeds
from edge.text import Tokenizer, Tokens

# The model's name is found in the event loop; 6 ms for so much. OpenAI's own limit of 300,000
# tokens a request is about 1.2 MB of English.
MAX_BODY_BYTES = 2 << 20
MAX_INPUTS = 2048  # as OpenAI's


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


def model_of(body: bytes) -> str:
    """Return the model that a request names; the rest of it is skipped.

    Raises InputError if it names none, or is larger than MAX_BODY_BYTES.
    """
    if len(body) > MAX_BODY_BYTES:
        raise too_large(MAX_BODY_BYTES)
    return decoded(_ADDRESSED, body, "request for embeddings").model


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
    request = decoded(_REQUEST, body, "request for embeddings")
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
    return Asked(parts=parts, encode=encode, texts=_first_texts(request.input, parts, order))


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


def _first_texts(
    given: str | list[str | int | list[int]],
    parts: tuple[Mapping[str, AnyArray], ...],
    order: AnyArray,
) -> tuple[str, ...] | None:
    """Return the texts of the rows of the first batch, None for tokens."""
    inputs = [given] if isinstance(given, str) else given
    texts = tuple(one for one in inputs if isinstance(one, str))
    rows = len(next(iter(parts[0].values())))
    return tuple(texts[number] for number in order[:rows]) if texts else None


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
