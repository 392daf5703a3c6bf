"""Files over HTTP: ranges, cuts, and servers that take their time."""

from __future__ import annotations

import random
import ssl
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edge.errors import FreshnessError, UsageError
from edge.update.http_origin import HttpOrigin, Patience
from edge.update.origin import Body, FolderOrigin, Origin
from edge.update.place import Pace, PacedOrigin, origin_from_url
from tests.edge.update.file_server import Handler, Served, answer, serving
from tests.fakes import FakeClock

LOOPBACK = IPv4Address("127.0.0.1")
CONTENT = random.Random(7).randbytes(300_000)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/file").write_bytes(CONTENT)
    with serving(tmp_path) as served:
        yield served


def opened(origin: Origin, path: str = "a/file", offset: int = 0) -> Body:
    body = origin.open(path, offset=offset)
    assert body is not None
    return body


def read(origin: Origin, path: str = "a/file", offset: int = 0) -> bytes:
    body = opened(origin, path, offset)
    return CONTENT[: body.offset] + b"".join(body.chunks)


def refused(origin: HttpOrigin, offset: int = 0) -> str:
    with pytest.raises(FreshnessError) as caught:
        read(origin, offset=offset)
    return str(caught.value)


def test_a_file_comes_whole_and_from_an_offset(server: Served) -> None:
    origin = HttpOrigin(server.url)
    assert read(origin) == CONTENT
    for offset in (1, 1000, len(CONTENT) - 1):
        before = server.sent_bytes
        assert read(origin, offset=offset) == CONTENT
        assert server.sent_bytes - before == len(CONTENT) - offset


def test_a_server_without_ranges_begins_anew_and_says_so(server: Served) -> None:
    server.has_ranges = False
    body = opened(HttpOrigin(server.url), offset=1000)
    assert (body.offset, b"".join(body.chunks)) == (0, CONTENT)


def test_an_offset_behind_the_end_begins_anew(server: Served) -> None:
    def too_far(handler: Handler, content: bytes) -> None:
        if "Range" in handler.headers:
            answer(handler, 416, {"Content-Length": 0})
        else:
            answer(handler, 200, {"Content-Length": len(content)}, content)

    server.tricks = {"": too_far}
    assert read(HttpOrigin(server.url), offset=1000) == CONTENT


def test_chunks_of_http_are_joined(server: Served) -> None:
    def chunked(handler: Handler, content: bytes) -> None:
        answer(handler, 200, {"Transfer-Encoding": "chunked"})
        for at in range(0, len(content), 70_000):
            piece = content[at : at + 70_000]
            handler.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        handler.wfile.write(b"0\r\n\r\n")

    server.tricks = {"": chunked}
    assert read(HttpOrigin(server.url)) == CONTENT


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_file_that_is_not_there_is_absent(server: Served, status: int) -> None:
    server.tricks = {"": lambda handler, _: answer(handler, status, {"Content-Length": 0})}
    assert HttpOrigin(server.url).open("a/file") is None


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 500, 503, 204, 401])
def test_no_other_status_is_taken_for_the_file(server: Served, status: int) -> None:
    headers = {"Location": server.url + "/a/file", "Content-Length": 0}
    server.tricks = {"": lambda handler, _: answer(handler, status, dict(headers))}
    assert "what is served stays" in refused(HttpOrigin(server.url))
    assert len(server.asked) == 1


def test_another_range_than_asked_for_is_refused(server: Served) -> None:
    headers = {"Content-Range": "bytes 5-9/10", "Content-Length": 5}
    server.tricks = {"": lambda handler, _: answer(handler, 206, dict(headers), b"abcde")}
    assert "another range" in refused(HttpOrigin(server.url), offset=1000)


def test_a_compressed_body_is_refused(server: Served) -> None:
    headers = {"Content-Encoding": "gzip", "Content-Length": 5}
    server.tricks = {"": lambda handler, _: answer(handler, 200, dict(headers), b"abcde")}
    assert "compressed" in refused(HttpOrigin(server.url))


def test_a_cut_body_is_not_taken_for_whole_and_what_came_is_given(server: Served) -> None:
    def cut(handler: Handler, content: bytes) -> None:
        answer(handler, 200, {"Content-Length": len(content)}, content[:100_000])

    server.tricks = {"": cut}
    came: list[bytes] = []
    with pytest.raises(FreshnessError, match="cut"):
        came.extend(opened(HttpOrigin(server.url)).chunks)
    assert b"".join(came) == CONTENT[:100_000]


def test_what_is_not_http_is_refused(server: Served) -> None:
    server.tricks = {"": lambda handler, _: handler.wfile.write(b"SSH-2.0-x\r\n" * 9) and None}
    assert "not HTTP" in refused(HttpOrigin(server.url))


def test_a_head_without_end_is_refused(server: Served) -> None:
    took_all = []

    def endless(handler: Handler, content: bytes) -> None:
        handler.send_response(200)
        handler.flush_headers()
        for number in range(1_000_000):
            handler.wfile.write(f"X-{number}: y\r\n".encode())
        took_all.append(True)

    server.tricks = {"": endless}
    assert "head is larger" in refused(HttpOrigin(server.url))
    assert took_all == []


@pytest.mark.parametrize("piece", [b"X-a: b\r\n", b"a", b"1;" + b"x" * 90 + b"\r\na\r\n"])
def test_what_surrounds_a_body_without_end_is_refused(server: Served, piece: bytes) -> None:
    """Headers behind the last chunk, an extension that never ends, and extensions of each chunk."""
    took_all = []

    def endless(handler: Handler, content: bytes) -> None:
        answer(handler, 200, {"Transfer-Encoding": "chunked"})
        handler.wfile.write(b"1\r\na\r\n" + (b"0\r\n" if piece[:1] == b"X" else b""))
        handler.wfile.write(b"1;" if piece == b"a" else b"")
        for _ in range(1000):
            handler.wfile.write(piece * 10_000)
        took_all.append(True)

    server.tricks = {"": endless}
    assert "not the file" in refused(HttpOrigin(server.url))
    assert took_all == []


def test_headers_behind_a_body_change_nothing(server: Served) -> None:
    def trailing(handler: Handler, content: bytes) -> None:
        answer(handler, 200, {"Transfer-Encoding": "chunked"})
        handler.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")
        handler.wfile.write(b"0\r\nContent-Encoding: gzip\r\n\r\n")

    server.tricks = {"": trailing}
    assert read(HttpOrigin(server.url)) == CONTENT


def test_a_server_that_drips_is_given_up_by_the_clock(server: Served) -> None:
    clock, dripped = FakeClock(), []

    def drip(handler: Handler, content: bytes) -> None:
        answer(handler, 200, {"Content-Length": len(content)})
        for at in range(len(content)):
            handler.wfile.write(content[at : at + 1])
            dripped.append(at)
            clock.advance(1.0)
            if server.stopped.is_set():
                return

    server.tricks = {"": drip}
    assert "too slowly" in refused(HttpOrigin(server.url, clock=clock))
    assert len(dripped) < len(CONTENT)


def test_a_head_that_drips_is_given_up_by_the_clock(server: Served) -> None:
    clock = FakeClock()

    def drip(handler: Handler, content: bytes) -> None:
        for letter in b"HTTP/1.1 200 OK\r\nX: " + b"y" * 10_000:
            handler.wfile.write(bytes([letter]))
            clock.advance(1.0)

    server.tricks = {"": drip}
    assert "too slowly" in refused(HttpOrigin(server.url, clock=clock))


def test_a_silent_server_is_given_up_at_the_deadline(server: Served) -> None:
    server.tricks = {"": lambda handler, _: server.stopped.wait(30) and None}
    assert "too slowly" in refused(HttpOrigin(server.url, patience=Patience(head_s=0.05)))


def test_a_taker_that_takes_its_time_is_not_the_servers_fault(server: Served) -> None:
    clock = FakeClock()
    origin = HttpOrigin(server.url, clock=clock)
    came = bytearray()
    for chunk in opened(origin).chunks:
        came += chunk
        clock.advance(3600.0)
    assert came == CONTENT


def test_a_pace_keeps_to_its_rate(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    clock = FakeClock()
    pace = Pace(10_000, clock=clock, sleep=clock.advance)
    origin, began = PacedOrigin(FolderOrigin(tmp_path), pace), clock.now
    for _ in range(3):
        b"".join(opened(origin, "file").chunks)
    assert clock.now - began == pytest.approx(2 * len(CONTENT) / 10_000)


def test_a_folder_gives_files_and_nothing_outside(tmp_path: Path) -> None:
    (tmp_path / "stick/in").mkdir(parents=True)
    (tmp_path / "stick/in/file").write_bytes(b"abcdef")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "stick/link").symlink_to(tmp_path / "secret")
    (tmp_path / "stick/folder").symlink_to(tmp_path)
    origin = origin_from_url(f"file://{tmp_path}/stick")
    assert b"".join(opened(origin, "in/file", 2).chunks) == b"cdef"
    for path in ("link", "folder/secret"):
        with pytest.raises(FreshnessError, match="link"):
            b"".join(opened(origin, path).chunks)
    assert origin.open("in/none") is None


def test_a_stick_that_fails_under_the_hand_is_no_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_symlink", fail)
    with pytest.raises(FreshnessError, match="permission denied"):
        FolderOrigin(tmp_path).open("a/file")


def test_a_stick_that_is_not_plugged_in_is_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(FreshnessError, match="plug"):
        origin_from_url(str(tmp_path / "none")).open("x")


@pytest.mark.parametrize(
    "url", ["ftp://x/y", "relative/folder", "", "https://user:word@host/x", "file://host/x"]
)
def test_what_is_no_place_of_a_channel_is_refused(url: str) -> None:
    with pytest.raises(UsageError):
        origin_from_url(url)


def certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """Return a certificate for 127.0.0.1 that signs itself, and a server's context with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(tz=timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(LOOPBACK)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "tls.pem"
    pem = serialization.Encoding.PEM
    path.write_bytes(made.public_bytes(pem))
    private = folder / "tls.key"
    private.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path, private)
    return path, context


def test_tls_is_checked_against_the_machines_authorities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/file").write_bytes(CONTENT)
    path, context = certificate(tmp_path)
    with serving(tmp_path, tls=context) as server:
        assert "certificate" in refused(HttpOrigin(server.url))
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        assert read(HttpOrigin(server.url), offset=1000) == CONTENT
