"""Requests as people have them: images or texts in place of tensors, names and boxes as answers.

An image is the body, or one or several files named "image" of a multipart form; texts are JSON,
`{"text": "..."}` or `{"text": ["...", "..."]}`. Several become one batch.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from werkzeug.wrappers import Request

from edge.asked import Asked, Encode
from edge.classes import guesses
from edge.detections import detections
from edge.errors import BackendUnavailableError, DeadlineError, InputError
from edge.http_answer import HttpAnswer, unpacked
from edge.http_request import HttpRequest
from edge.images import ImagePreprocessing, Placement, placed_from_image
from edge.manifest import Model
from edge.oip import InferRequest, WantedOutput, encode_infer
from edge.served import ServedModel
from edge.spec import AnyArray, Feeds, check_feeds, check_tensor
from edge.text import Tokenizer
from edge.wsgi_environ import environ_of

FORM_FIELD = "image"
# A decoded image may take 300 MB; requests wait here, they do not pile up in memory.
MAX_DECODING = 2


class TextRequest(msgspec.Struct, frozen=True):
    """The body of a request with texts."""

    text: str | tuple[str, ...]


_TEXTS = msgspec.json.Decoder(TextRequest)


class Predictor:
    """Reads requests; images a few at a time. May be used from any thread."""

    def __init__(self, *, max_body_bytes: int, timeout_s: float) -> None:
        self._max_body_bytes = max_body_bytes
        self._timeout_s = timeout_s
        self._places = threading.BoundedSemaphore(MAX_DECODING)

    def asked(self, request: HttpRequest, served: ServedModel) -> Asked:
        """Return what a request asks.

        Raises InputError for what the model does not take, or not so often, DeadlineError if no
        place to decode was free in time, BackendUnavailableError if what reads it is not installed.
        """
        model = served.model
        if model.text is not None:
            encoding = request.header(b"content-encoding")
            body = unpacked(request.body, encoding, max_body_bytes=self._max_body_bytes)
            texts = _texts(body)
            feeds = feeds_from_texts(texts, model, tokenizer_of(served))
            return Asked(parts=(feeds,), encode=encoder_of(model), texts=texts)
        if model.image is None:
            raise InputError(
                f"model {model.name!r} was packed without image or text steps; send tensors to "
                f"/v2/models/{model.name}/infer"
            )
        if request.header(b"content-type").partition(";")[0].strip() == "application/json":
            raise InputError(
                f"model {model.name!r} takes images; send one as the body, or as the form field "
                f"{FORM_FIELD!r}"
            )
        contents = _images(Request(environ_of(request)))
        feeds, placements = self._feeds_from_images(contents, model, model.image)
        return Asked(parts=(feeds,), encode=encoder_of(model, placements))

    def _feeds_from_images(
        self, contents: Sequence[bytes], model: Model, how: ImagePreprocessing
    ) -> tuple[Feeds, tuple[Placement, ...]]:
        spec = next(spec for spec in model.inputs if spec.name == how.input)
        row = model.profile.ranges[spec.name].opt[1:]
        check_tensor(spec.name, spec.datatype, (len(contents), *row), model.inputs, model.profile)
        if not self._places.acquire(timeout=self._timeout_s):
            raise DeadlineError(f"other images were decoded for {self._timeout_s:g} s; retry later")
        try:
            placed = [placed_from_image(content, how, spec.dtype) for content in contents]
        finally:
            self._places.release()
        tensors = np.concatenate([image.tensor for image in placed])
        return {spec.name: tensors}, tuple(image.placement for image in placed)


def encoder_of(model: Model, placements: tuple[Placement, ...] = ()) -> Encode:
    """Return what answers with boxes or the names of classes, or else with tensors, in JSON."""
    if model.detection is not None and placements:
        return functools.partial(_encoded_boxes, model, placements)
    if model.classes is not None:
        return functools.partial(_encoded_classes, model)
    return functools.partial(_encoded_tensors, model)


def tokenizer_of(served: ServedModel) -> Tokenizer:
    """Return what reads texts for a model that takes them.

    Raises BackendUnavailableError if it could not be opened.
    """
    if served.tokenizer is None:
        raise BackendUnavailableError(
            f"model {served.model.name!r} has no working tokenizer here; the agent's log says why, "
            f"most often that pip install 'edge-kit[text]' is missing"
        )
    return served.tokenizer


def feeds_from_texts(texts: Sequence[str], model: Model, tokenizer: Tokenizer) -> Feeds:
    """Return the feeds for one batch of texts; raises InputError if the model takes no such one."""
    most = model.profile.ranges[tokenizer.how.ids].max[0]
    if not 0 < len(texts) <= most:
        raise InputError(
            f"the request holds {len(texts)} texts, model {model.name!r} takes 1..{most} at once"
        )
    rows = tokenizer.tokens_of_texts(texts)
    feeds = tokenizer.feeds(rows, model.inputs, model.profile)
    check_feeds(feeds, model.inputs, model.profile)
    return feeds


def _encoded_boxes(
    model: Model, placements: tuple[Placement, ...], outputs: Mapping[str, AnyArray]
) -> HttpAnswer:
    assert model.detection is not None and model.image is not None  # noqa: S101, PT018 - encoder_of
    found = detections(outputs, model.detection, model.image, placements)
    return _answer(model, "detections", found)


def _encoded_classes(model: Model, outputs: Mapping[str, AnyArray]) -> HttpAnswer:
    assert model.classes is not None  # noqa: S101 - encoder_of
    found = guesses(outputs[model.classes.output], model.classes)
    return _answer(model, "predictions", found)


def _encoded_tensors(model: Model, outputs: Mapping[str, AnyArray]) -> HttpAnswer:
    wanted = tuple(WantedOutput(name=spec.name, binary=False) for spec in model.outputs)
    response = encode_infer(
        outputs,
        InferRequest(id=None, feeds={}, wanted=wanted),
        model=model.name,
        version=model.version,
        outputs=model.outputs,
    )
    return HttpAnswer(status=200, body=response.body)


def _answer(model: Model, key: str, rows: object) -> HttpAnswer:
    body = {"model_name": model.name, "model_version": model.version, key: rows}
    return HttpAnswer(status=200, body=msgspec.json.encode(body))


def _texts(body: bytes) -> tuple[str, ...]:
    try:
        text = _TEXTS.decode(body).text
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise InputError(
            f'the body is not {{"text": "..."}} or {{"text": ["...", "..."]}}: {error}'
        ) from error
    return (text,) if isinstance(text, str) else text


def _images(request: Request) -> Sequence[bytes]:
    if request.mimetype == "multipart/form-data":
        try:
            contents = [file.read() for file in request.files.getlist(FORM_FIELD)]
        finally:
            request.close()
    else:
        contents = [request.get_data(cache=False)]
    if not any(contents):
        raise InputError(
            f"the request holds no image; send it as the body, or as the form field {FORM_FIELD!r}"
        )
    return contents
