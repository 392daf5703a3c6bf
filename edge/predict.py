"""Requests as people have them: an image instead of a tensor.

The body is one encoded image, or a multipart form with one or several files named "image", which
become one batch. A classifier answers with the names of its best classes, other models with
tensors.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from werkzeug.wrappers import Request

from edge.classes import Classes, guesses
from edge.errors import DeadlineError, InputError
from edge.images import tensor_from_image
from edge.manifest import Model
from edge.oip import InferRequest, WantedOutput
from edge.spec import AnyArray, check_tensor

FORM_FIELD = "image"
# A decoded image may take 300 MB; requests wait here, they do not pile up in memory.
MAX_DECODING = 2


class ImageRequests:
    """Turns requests into feeds, a few at a time."""

    def __init__(self) -> None:
        self._places = threading.BoundedSemaphore(MAX_DECODING)

    def parse(self, request: Request, model: Model, *, timeout_s: float) -> InferRequest:
        """Return the images of a request as one inference request for every output, in JSON.

        Raises InputError for a model that takes no images, for none or too many of them and for
        what is no image, DeadlineError if no place was free in time.
        """
        how = model.image
        if how is None:
            raise InputError(
                f"model {model.name!r} was packed without image steps; send tensors to "
                f"/v2/models/{model.name}/infer"
            )
        spec = next(spec for spec in model.inputs if spec.name == how.input)
        contents = _contents(request)
        row = model.profile.ranges[spec.name].opt[1:]
        check_tensor(spec.name, spec.datatype, (len(contents), *row), model.inputs, model.profile)
        if not self._places.acquire(timeout=timeout_s):
            raise DeadlineError(f"other images were decoded for {timeout_s:g} s; retry later")
        try:
            rows = [tensor_from_image(content, how, spec.dtype) for content in contents]
        finally:
            self._places.release()
        return InferRequest(
            id=None,
            feeds={spec.name: np.concatenate(rows)},
            wanted=tuple(WantedOutput(name=output.name, binary=False) for output in model.outputs),
            wants_classes=model.classes is not None,
        )


def predictions(outputs: Mapping[str, AnyArray], model: Model, classes: Classes) -> bytes:
    """Return the best classes of every row, in JSON."""
    return msgspec.json.encode(
        {
            "model_name": model.name,
            "model_version": model.version,
            "predictions": guesses(outputs[classes.output], classes),
        }
    )


def _contents(request: Request) -> Sequence[bytes]:
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
