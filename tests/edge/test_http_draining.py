"""What is inside when the server stops."""

import http.client
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.edge.running_server import Running, read_all, running_server


@pytest.fixture
def running() -> Iterator[Running]:
    with running_server() as server:
        yield server


def test_draining_sends_the_whole_answer_of_a_running_request_then_closes(
    running: Running,
) -> None:
    with closing(running.http()) as connection, running.connect() as idle:
        connection.request("POST", "/wait", b"")
        running.gate.wait_entered()
        running.begin_stop()
        assert read_all(idle) == b""  # an idle connection is closed at once
        with pytest.raises(ConnectionRefusedError):
            running.connect()
        running.gate.open()
        response = connection.getresponse()
        assert response.getheader("Connection") == "close"
        assert len(response.read()) == 3_000_000
    running.join()
    assert running.drained is True


def test_draining_waits_for_a_body_that_is_arriving(running: Running) -> None:
    with running.connect() as connection, closing(running.http()) as other:
        connection.sendall(b"POST /echo HTTP/1.1\r\nContent-Length: 10\r\n\r\n01234")
        other.request("POST", "/echo", b"x")
        assert other.getresponse().read() == b"x"  # so the bytes above have been read as well
        running.begin_stop()
        assert read_all(other.sock) == b""
        connection.sendall(b"56789")
        assert read_all(connection).endswith(b"\r\n\r\n0123456789")
    running.join()
    assert running.drained is True


def test_draining_gives_up_after_its_time(running: Running) -> None:
    running.drain_timeout_s = 0.0
    with closing(running.http()) as connection:
        connection.request("POST", "/wait", b"")
        running.gate.wait_entered()
        running.begin_stop()
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            connection.getresponse()
    assert running.drained is False
    running.gate.open()
    running.join()
