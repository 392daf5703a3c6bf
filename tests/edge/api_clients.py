"""Clients of the agent's API over a fake model, and the requests that they send."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flask import Flask
from werkzeug.test import Client, TestResponse

from edge.api import create_app
from edge.bundle import Bundle
from edge.choice import Choice
from edge.http_server import AppHandler, Loop
from edge.infer import InferHandler
from edge.inference import Inference
from edge.latency import LatencyWindow
from edge.places import Places
from edge.replicas import Replicas
from edge.self_test import SelfTest
from edge.served import ServedModel
from edge.serving import Serving
from edge.statistics import ModelStatistics
from edge.worker import Worker
from tests.bundles import affine_parts
from tests.fakes import DEADLINE_S, FakeSession, starting_workers
from tests.handlers import client_of, turning

MAX_BODY_BYTES = 4096
X = np.array([[1, 2, 3, 4]], np.float32)
GOOD = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": X.tolist()}]}
INFER = "/v2/models/affine/infer"


class NoChanges:
    """A repository that nobody may ask."""


def make_app(serving: Serving) -> Flask:
    return create_app(
        serving,
        NoChanges(),  # type: ignore[arg-type]
        max_body_bytes=MAX_BODY_BYTES,
        clock=time.monotonic,
    )


def error_of(response: TestResponse, status: int) -> str:
    """Return the error text of a response, having checked its form."""
    assert response.status_code == status, response.data
    assert response.content_type == "application/json"
    message = response.get_json()["error"]
    assert isinstance(message, str)
    assert message
    return message


def good(**changes: Any) -> str:
    return json.dumps({"inputs": [{**GOOD["inputs"][0], **changes}]})


def affine_serving() -> Serving:
    bundle = Bundle(root=Path("/nowhere"), manifest=affine_parts()[0], signed_by=None)
    return Serving(bundle, started=0.0, allow_unsigned=True)


@contextlib.contextmanager
def loading(serving: Serving) -> Iterator[Callable[..., Worker]]:
    """Give a function that serves a session as the model; its worker is stopped in the end."""
    with starting_workers() as start:

        def load(session: FakeSession, *, queue_size: int = 4) -> Worker:
            model = serving.bundle.manifest.models[0]
            worker = start(session, queue_size=queue_size)
            serving.served = {
                "affine": ServedModel(
                    model=model,
                    bundle=serving.bundle,
                    choice=Choice(
                        variant=model.variants[0], means="ort-cpu", why="it is first", refused=()
                    ),
                    self_test=SelfTest(cases=1, output="y", relative_error=0.0, tolerance=0.1),
                    worker=Replicas([worker]),
                    places=Places("affine", queue_size + 1),
                    metrics=serving.metrics.for_model("affine"),
                    latency=LatencyWindow(),
                    statistics=ModelStatistics(),
                )
            }
            serving.phase = "serving"
            return worker

        yield load


@contextlib.contextmanager
def asking(serving: Serving) -> Iterator[Callable[..., Client]]:
    """Give a function that makes a client of the handler that the agent's server has."""
    with contextlib.ExitStack() as stack:

        def ask(*, request_timeout_s: float = DEADLINE_S) -> Client:
            loop = Loop()
            inference = Inference(
                serving,
                max_body_bytes=MAX_BODY_BYTES,
                request_timeout_s=request_timeout_s,
                clock=time.monotonic,
            )
            handler = InferHandler(inference, loop, AppHandler(make_app(serving), loop))
            stack.callback(handler.close)
            stack.enter_context(turning(loop))
            return client_of(handler, loop)

        yield ask
