"""What the API says of a model that is starting, stopping, busy, late or failing."""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from werkzeug.test import Client

from edge.errors import InferenceError
from edge.serving import Serving
from edge.worker import Worker
from tests.edge.api_clients import GOOD, INFER, X, affine_serving, asking, error_of, good, loading
from tests.fakes import DEADLINE_S, FakeSession, Gate
from tests.models import affine


@pytest.fixture
def serving() -> Serving:
    return affine_serving()


@pytest.fixture
def load(serving: Serving) -> Iterator[Callable[..., Worker]]:
    with loading(serving) as load:
        yield load


@pytest.fixture
def ask(serving: Serving) -> Iterator[Callable[..., Client]]:
    with asking(serving) as ask:
        yield ask


@pytest.fixture
def client(load: Callable[..., Worker], ask: Callable[..., Client]) -> Client:
    load(FakeSession())
    return ask()


def test_a_full_queue_is_a_429_that_says_when_to_retry(
    ask: Callable[..., Client], load: Callable[..., Worker]
) -> None:
    gate = Gate()
    worker = load(FakeSession(before_run=gate), queue_size=1)
    client = ask()
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(client.post, INFER, data=good())
        gate.wait_entered()
        waiting = pool.submit(worker.infer, {"x": X}, deadline=None)
        while worker.queue_depth == 0 and not waiting.done():
            pass
        response = client.post(INFER, data=good())
        assert "retry later" in error_of(response, 429)
        assert response.headers["Retry-After"] == "1"
        gate.open()
        assert running.result(DEADLINE_S).status_code == 200


def test_a_late_answer_is_a_504(ask: Callable[..., Client], load: Callable[..., Worker]) -> None:
    gate = Gate()
    load(FakeSession(before_run=gate))
    client = ask(request_timeout_s=0.01)
    assert "time limit" in error_of(client.post(INFER, data=good()), 504)
    gate.open()


def test_a_backend_failure_is_a_500_without_internals(
    ask: Callable[..., Client], load: Callable[..., Worker]
) -> None:
    def fail() -> None:
        raise InferenceError("CUDA error 700 at /opt/secret.cc:12")

    load(FakeSession(before_run=fail))
    client = ask()
    for attempt in range(4):
        message = error_of(client.post(INFER, data=good()), 500)
        assert "secret" not in message
        assert client.get("/v2/health/ready").status_code == (200 if attempt < 2 else 503)
    assert client.get("/v2/health/live").status_code == 200
    assert "failing" in error_of(client.get("/v2/health/ready"), 503)


def test_a_bug_is_a_500_without_internals_and_logged(
    ask: Callable[..., Client], load: Callable[..., Worker], caplog: pytest.LogCaptureFixture
) -> None:
    load(FakeSession(compute=lambda x: {"y": x}))  # no "s": encoding trips over it
    client = ask()
    with caplog.at_level(logging.ERROR):
        message = error_of(client.post(INFER, data=good()), 500)
    assert "KeyError" not in message
    assert any(record.exc_info for record in caplog.records)


def test_nan_in_a_json_answer_is_a_400_that_names_binary(
    ask: Callable[..., Client], load: Callable[..., Worker]
) -> None:
    load(FakeSession(compute=lambda x: {name: a * np.nan for name, a in affine(x).items()}))
    client = ask()
    assert "binary_data" in error_of(client.post(INFER, data=good()), 400)
    asked = {**GOOD, "parameters": {"binary_data_output": True}}
    assert client.post(INFER, json=asked).status_code == 200


def test_while_starting_the_agent_is_live_and_describes_its_models_but_is_not_ready(
    ask: Callable[..., Client],
) -> None:
    client = ask()
    assert client.get("/v2/health/live").status_code == 200
    assert client.get("/v2/models/affine").status_code == 200
    assert client.get("/telemetry").status_code == 200
    assert "starting" in error_of(client.get("/v2/health/ready"), 503)
    assert "starting" in error_of(client.get("/v2/models/affine/ready"), 503)
    assert "starting; wait until" in error_of(client.post(INFER, data=good()), 503)


def test_while_stopping_the_agent_answers_but_is_not_ready(
    serving: Serving, client: Client
) -> None:
    serving.phase = "stopping"
    assert "stopping" in error_of(client.get("/v2/health/ready"), 503)
    assert client.post(INFER, data=good()).status_code == 200
