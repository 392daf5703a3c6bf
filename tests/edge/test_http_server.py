import gc
import json
import socket
import subprocess
import threading
import weakref
from collections.abc import Iterator
from contextlib import closing

import pytest
from flask import Flask

from edge import http_connection, http_server
from edge.errors import ConfigError
from edge.http_server import AppHandler, HttpServer, Loop
from tests.edge.running_server import MAX_BODY_BYTES, Running, exchange, read_all, running_server
from tests.fakes import DEADLINE_S


@pytest.fixture
def running() -> Iterator[Running]:
    with running_server() as server:
        yield server


def test_a_body_up_to_the_cap_arrives_whole_on_a_connection_that_stays_open(
    running: Running,
) -> None:
    with closing(running.http()) as connection:
        for size in (0, 1, 50_000, MAX_BODY_BYTES):
            body = bytes(i % 251 for i in range(size))
            connection.request("POST", "/echo", body)
            response = connection.getresponse()
            assert response.status == 200
            assert response.read() == body


def test_a_chunked_body_is_put_together(running: Running) -> None:
    with closing(running.http()) as connection:
        connection.request("POST", "/echo", iter([b"ab", b"c" * 10]), encode_chunked=True)
        assert connection.getresponse().read() == b"ab" + b"c" * 10


def test_a_client_that_sends_200_mb_before_it_reads_still_gets_the_413(running: Running) -> None:
    total, chunk = 200_000_000, b"\0" * 1_000_000
    with running.connect() as connection:
        connection.sendall(b"POST /echo HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % total)
        for _ in range(total // len(chunk)):
            connection.sendall(chunk)
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413 ")
    assert "exceeds 100000 bytes" in json.loads(body)["error"]


def test_a_chunked_body_over_the_cap_is_a_413(running: Running) -> None:
    chunk = b"%x\r\n" % 50_000 + b"x" * 50_000 + b"\r\n"
    sent = b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 40
    status, message = exchange(running, sent)
    assert (status, "exceeds 100000 bytes" in message) == (413, True)


def test_a_client_that_asks_first_is_refused_before_it_sends(running: Running) -> None:
    sent = b"POST /echo HTTP/1.1\r\nContent-Length: 999999999\r\nExpect: 100-continue\r\n\r\n"
    assert exchange(running, sent)[0] == 413


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nContent-Length: -5\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nContent-Length: abc\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", 400),
        (b"GET http://[::1/ HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nBad Header: x\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000, 431),
    ],
)
def test_a_request_that_is_no_http_is_refused_in_json(
    running: Running, sent: bytes, status: int
) -> None:
    got, message = exchange(running, sent)
    assert got == status
    assert message


def test_a_body_that_ends_early_is_a_400(running: Running) -> None:
    sent = b"POST /echo HTTP/1.1\r\nContent-Length: 100\r\n\r\nonly this"
    status, message = exchange(running, sent, half_close=True)
    assert status == 400
    assert "ends before its announced length" in message


def test_a_client_that_vanishes_in_its_body_harms_nobody(running: Running) -> None:
    with running.connect() as connection:
        connection.sendall(b"POST /echo HTTP/1.1\r\nContent-Length: 100\r\n\r\nonly this")
    with closing(running.http()) as connection:
        connection.request("POST", "/echo", b"still here")
        assert connection.getresponse().read() == b"still here"


def test_lingering_ends_when_its_time_is_over(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_connection, "LINGER_S", 0.0)
    with running.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n")
        read_all(connection)
        while running.server._connections:  # closed although the client stays
            running.server.wake()


def test_lingering_ends_after_its_bytes(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "MAX_DISCARDED_BYTES", 1_000_000)
    with running.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n")
        read_all(connection)
        with pytest.raises(OSError, match=r"reset|[Bb]roken pipe"):
            connection.sendall(bytes(100_000_000))


def test_the_server_does_not_name_its_software(running: Running) -> None:
    with closing(running.http()) as connection:
        connection.request("POST", "/echo", b"")
        response = connection.getresponse()
        response.read()
        assert response.getheader("Server") is None


def open_server(*, host: str, port: int) -> HttpServer:
    loop = Loop()
    return HttpServer.open(
        AppHandler(Flask("x"), loop), loop, host=host, port=port, max_body_bytes=10
    )


def test_a_port_in_use_is_one_clear_error(running: Running) -> None:
    with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{running.port}.* in use.*--port"):
        open_server(host="127.0.0.1", port=running.port)


def test_an_unknown_host_is_one_clear_error() -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on 203\.0\.113\.7"):
        open_server(host="203.0.113.7", port=0)


def test_an_ipv6_address_is_written_in_brackets() -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    try:
        server = open_server(host="::1", port=0)
    except ConfigError:
        pytest.skip("this machine has no IPv6 loopback")
    assert server.url.startswith("http://[::1]:")
    server.close()


def test_requests_sent_at_once_are_answered_in_their_order(running: Running) -> None:
    sent = b"".join(
        b"POST /echo HTTP/1.1\r\nContent-Length: 2\r\n\r\n%02d" % number for number in range(40)
    )
    with running.connect() as connection:
        connection.sendall(sent + b"POST /echo HTTP/1.1\r\nConnection: close\r\n\r\n")
        answers = read_all(connection).split(b"HTTP/1.1 200 OK")[1:]
    assert [answer[-2:] for answer in answers[:40]] == [b"%02d" % number for number in range(40)]
    assert len(answers) == 41


def test_a_client_that_has_said_all_still_gets_its_answer(running: Running) -> None:
    with running.connect() as connection:
        connection.sendall(b"POST /echo HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc")
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection).endswith(b"\r\n\r\nabc")


def test_head_gets_no_body_and_http_1_0_closes(running: Running) -> None:
    with closing(running.http()) as connection:
        connection.request("HEAD", "/nothing")
        response = connection.getresponse()
        assert (response.status, response.read()) == (404, b"")
        assert int(response.getheader("Content-Length") or 0) > 0
    with running.connect() as connection:
        connection.sendall(b"POST /echo HTTP/1.0\r\nContent-Length: 1\r\n\r\nx")
        assert read_all(connection).endswith(b"\r\n\r\nx")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"POST /echo HTTP/1.1\r\nContent-Length: 100\r\n\r\nonly", b"408"),
        (b"POST /ec", b"408"),
        (b"", b""),
    ],
)
def test_a_client_that_trickles_is_not_waited_for(
    running: Running, monkeypatch: pytest.MonkeyPatch, sent: bytes, status: bytes
) -> None:
    monkeypatch.setattr(http_connection, "ARRIVAL_S", 0.0)
    monkeypatch.setattr(http_connection, "IDLE_S", 0.0)
    with running.connect() as connection:
        connection.sendall(sent)
        try:
            answer = read_all(connection)
        except ConnectionResetError:
            answer = b""
    assert answer[9:12] == status


def test_one_connection_too_many_is_refused_and_the_others_stay(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 2)
    with closing(running.http()) as first, closing(running.http()) as second:
        for connection in (first, second):
            connection.request("POST", "/echo", b"x")
            assert connection.getresponse().read() == b"x"
        with running.connect() as third:
            assert read_all(third).startswith(b"HTTP/1.1 503 ")
        first.request("POST", "/echo", b"y")
        assert first.getresponse().read() == b"y"
    assert running.refusals == [503]


def test_a_header_with_an_underscore_cannot_pose_as_another(running: Running) -> None:
    with closing(running.http()) as connection:
        connection.request("POST", "/headers", b"", {"X_Real": "forged", "X-Real": "true"})
        assert json.loads(connection.getresponse().read())["HTTP_X_REAL"] == "true"


def test_bodies_of_all_clients_together_are_bounded_and_given_back(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running.server.arriving, "_max_bytes", 150_000)
    head = b"POST /echo HTTP/1.1\r\nContent-Length: 90000\r\n\r\n"
    with closing(running.http()) as idle, running.connect() as first:
        first.sendall(head + b"x" * 80_000)
        while running.server.arriving.used < 80_000:
            idle.request("POST", "/echo", b"")
            assert idle.getresponse().read() == b""
        with running.connect() as second:
            second.sendall(head + b"y" * 90_000)
            assert read_all(second).startswith(b"HTTP/1.1 503 ")
        first.sendall(b"x" * 10_000)
        answer = b""
        while not answer.endswith(b"x" * 90_000):
            answer += first.recv(65536)
        idle.request("POST", "/echo", b"z" * 90_000)
        assert idle.getresponse().read() == b"z" * 90_000
        with running.connect() as third:  # one that vanishes gives back what it took
            third.sendall(head + b"x" * 80_000)
            while running.server.arriving.used < 80_000:
                idle.request("POST", "/echo", b"")
                assert idle.getresponse().read() == b""
        while running.server.arriving.used:
            idle.request("POST", "/echo", b"")
            assert idle.getresponse().read() == b""


@pytest.mark.parametrize("body", [b"", b"0123456789"])
def test_an_offer_of_another_protocol_is_passed_over(running: Running, body: bytes) -> None:
    lines = [
        "POST /echo HTTP/1.1",
        "Connection: Upgrade, HTTP2-Settings",
        "Upgrade: h2c",
        "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA",
        f"Content-Length: {len(body)}",
    ]
    with running.connect() as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1") == 1
    assert answer.endswith(b"\r\n\r\n" + body)


def test_curl_that_prefers_http_2_is_answered(running: Running) -> None:
    url = f"http://127.0.0.1:{running.port}/echo"
    words = ["curl", "-s", "--http2", "--data-binary", "hello", url]
    assert subprocess.run(words, capture_output=True, check=True).stdout == b"hello"


def test_what_a_connection_held_is_free_once_it_closes_and_not_at_the_next_collection(
    running: Running,
) -> None:
    gone = threading.Event()
    gc.disable()
    try:
        with closing(running.http()) as client:
            client.request("POST", "/echo", b"x")
            client.getresponse().read()
            (connection,) = running.server._connections
            weakref.finalize(connection, gone.set)
            del connection
        assert gone.wait(DEADLINE_S)
    finally:
        gc.enable()
