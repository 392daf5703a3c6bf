"""Refusals before a body is read: a full model, and a client that asks for too much at once."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from edge.agent import Agent
from tests.agents import make_config, running_agent
from tests.fakes import DEADLINE_S, FakeSession, Gate, wait_until

INFER = "/v2/models/affine/infer"
BODY = json.dumps(
    {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
).encode()
ONE_MB = BODY + b" " * (1 << 20)


class Held:
    """An agent whose model is held by a gate once `hold` was called."""

    def __init__(self, agent: Agent, gate: Gate) -> None:
        self.agent = agent
        self.gate = gate
        self.hold = gate.hold
        self.port = int(agent.url.rsplit(":", 1)[1])

    def http(self, source: str = "127.0.0.1") -> http.client.HTTPConnection:
        return http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=DEADLINE_S, source_address=(source, 0)
        )

    def metric(self, line: str) -> str:
        with closing(self.http()) as connection:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        (found,) = [found for found in text.splitlines() if found.startswith(line)]
        return found.split()[-1]


@contextlib.contextmanager
def held_agent(tmp_path: Path, **changes: Any) -> Iterator[Held]:
    gate = Gate(holds=False)
    session = FakeSession(before_run=gate)
    config = make_config(tmp_path, **changes)
    with running_agent(config, open_session=lambda *_: session) as agent:
        try:
            yield Held(agent, gate)
        finally:
            gate.open()


def post(connection: http.client.HTTPConnection, body: bytes = BODY) -> http.client.HTTPResponse:
    connection.request("POST", INFER, body)
    response = connection.getresponse()
    response.read()
    return response


@contextlib.contextmanager
def filled(held: Held, count: int, source: str = "127.0.0.1") -> Iterator[None]:
    """Have so many requests inside while the block runs, then have them answered."""
    held.hold()
    served = held.agent.serving.served["affine"]
    with ThreadPoolExecutor(count) as pool:

        def ask() -> int:
            with closing(held.http(source)) as connection:
                return post(connection).status

        asked = [pool.submit(ask)]
        try:
            held.gate.wait_entered()  # one runs; then the others find the inbox empty
            asked += [pool.submit(ask) for _ in range(count - 1)]
            wait_until(lambda: served.worker.queue_depth == count - 1)
            yield
        finally:
            held.gate.open()
        assert [future.result(DEADLINE_S) for future in asked] == [200] * count


def test_a_refusal_of_a_megabyte_leaves_its_connection_good_for_the_next(tmp_path: Path) -> None:
    with held_agent(tmp_path, queue_size=1) as held, closing(held.http()) as connection:
        with filled(held, 2):
            for _ in range(3):
                response = post(connection, ONE_MB)
                assert (response.status, response.headers["Retry-After"]) == (429, "1")
            used = connection.sock
        assert post(connection, ONE_MB).status == 200
        assert connection.sock is used
        outcome = 'edge_inference_requests_total{model="affine",outcome="queue-full"}'
        assert held.metric(outcome) == "3.0"


def test_the_body_of_a_refused_request_takes_no_memory(tmp_path: Path) -> None:
    with held_agent(tmp_path, queue_size=1) as held, filled(held, 2):
        arriving = held.agent._server.arriving
        before = arriving.used
        with socket.create_connection(("127.0.0.1", held.port), timeout=DEADLINE_S) as client:
            head = f"POST {INFER} HTTP/1.1\r\nContent-Length: {len(ONE_MB)}\r\n\r\n"
            client.sendall(head.encode() + ONE_MB[:-1])
            with closing(held.http()) as other:  # answered after what has come was read
                other.request("GET", "/v2/health/live")
                assert other.getresponse().status == 200
            assert arriving.used == before
            client.sendall(ONE_MB[-1:])
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 429 ")


def test_who_asks_before_sending_is_refused_without_a_byte_of_the_body(tmp_path: Path) -> None:
    with held_agent(tmp_path, queue_size=1) as held, filled(held, 2):
        with socket.create_connection(("127.0.0.1", held.port), timeout=DEADLINE_S) as client:
            head = f"POST {INFER} HTTP/1.1\r\nContent-Length: 9999\r\nExpect: 100-continue\r\n\r\n"
            client.sendall(head.encode())
            answer = b""
            while chunk := client.recv(1 << 16):
                answer += chunk
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert b"Connection: close" in answer
        assert held.metric('edge_http_responses_total{status="429"}') == "1.0"


def test_an_unknown_model_is_told_before_the_body(tmp_path: Path) -> None:
    with held_agent(tmp_path) as held, closing(held.http()) as connection:
        connection.request("POST", "/v2/models/other/infer", ONE_MB)
        response = connection.getresponse()
        assert response.status == 404
        assert b"'other' is unknown" in response.read()
        assert post(connection).status == 200


def test_clients_that_trickle_keep_nobody_out_of_the_model(tmp_path: Path) -> None:
    with held_agent(tmp_path, queue_size=1) as held:
        head = f"POST {INFER} HTTP/1.1\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()
        with contextlib.ExitStack() as stack:
            for _ in range(20):
                slow = socket.create_connection(("127.0.0.1", held.port), timeout=DEADLINE_S)
                stack.enter_context(slow)
                slow.sendall(head + BODY[:5])
            connection = stack.enter_context(closing(held.http()))
            assert post(connection).status == 200


def test_one_address_has_its_limit_and_others_have_theirs(tmp_path: Path) -> None:
    with (
        held_agent(tmp_path, max_per_client=2) as held,
        closing(held.http("127.0.0.1")) as greedy,
        closing(held.http("127.0.0.2")) as other,
        ThreadPoolExecutor(1) as pool,
    ):
        with filled(held, 2, source="127.0.0.1"):
            response = post(greedy, ONE_MB)
            assert (response.status, response.headers["Retry-After"]) == (429, "1")
            waiting = pool.submit(post, other)
            worker = held.agent.serving.served["affine"].worker
            wait_until(lambda: worker.queue_depth == 2)  # taken from there, refused from here
            greedy.request("GET", "/v2/health/ready")
            assert greedy.getresponse().read() == b'{"ready":true}'
        assert waiting.result(DEADLINE_S).status == 200
        assert post(greedy).status == 200
        requests = held.agent._server.requests
        assert requests.taken == {}


@pytest.mark.parametrize("end", ["reset", "half-close", "garbage"])
def test_a_request_that_never_comes_whole_gives_its_place_back(tmp_path: Path, end: str) -> None:
    with held_agent(tmp_path, max_per_client=1) as held:
        requests = held.agent._server.requests
        with socket.create_connection(("127.0.0.1", held.port), timeout=DEADLINE_S) as client:
            client.sendall(
                f"POST {INFER} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab".encode()
            )
            wait_until(lambda: bool(requests.taken))
            if end == "reset":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1] + [0] * 7))
                client.close()
            elif end == "half-close":
                client.shutdown(socket.SHUT_WR)
            else:
                client.sendall(b"cdefgh")
            wait_until(lambda: not requests.taken)
        with closing(held.http()) as connection:
            assert post(connection).status == 200


def test_one_address_cannot_take_all_connections(tmp_path: Path) -> None:
    with (
        held_agent(tmp_path, max_connections_per_client=2) as held,
        contextlib.ExitStack() as stack,
    ):
        ours = [stack.enter_context(closing(held.http("127.0.0.1"))) for _ in range(2)]
        for connection in ours:
            assert post(connection).status == 200

        def one_more() -> bytes:
            more = socket.create_connection(("127.0.0.1", held.port), timeout=DEADLINE_S)
            with contextlib.suppress(ConnectionError):
                return stack.enter_context(more).recv(1 << 16)
            return b""

        # Told so, as long as few of them linger; then closed.
        answers = [one_more()[:12] for _ in range(3)]
        assert answers == [b"HTTP/1.1 429", b"HTTP/1.1 429", b""]
        other = stack.enter_context(closing(held.http("127.0.0.2")))
        assert post(other).status == 200
        assert post(ours[0]).status == 200
        stack.pop_all().close()
        connections = held.agent._server.connections
        wait_until(lambda: not connections.taken)
