"""What a page of another site can make a browser send, and what the agent makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.access import Access, search_domains
from edge.agent import Agent
from tests.agents import make_config, running_agent
from tests.browser import Browser, found_browser
from tests.edge.running_server import Running, exchange, running_server

ACCESS = Access.of_machine("orin-7.hall.example", ["Edge.Example", " ", ""], domains=["lan"])
OK, BAD, FORBIDDEN, MISDIRECTED = None, 400, 403, 421


def status(method: str, **headers: str) -> int | None:
    named = {name.replace("_", "-").encode(): text.encode() for name, text in headers.items()}
    refusal = ACCESS.refusal(method, named)
    return None if refusal is None else refusal.status


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1:8000", OK),
        ("10.0.0.7", OK),
        ("[::1]:8000", OK),
        ("[fe80::1]", OK),
        ("localhost", OK),
        ("LOCALHOST.:8000", OK),
        ("orin-7.hall.example:8000", OK),
        ("orin-7", OK),
        ("orin-7.local", OK),
        ("orin-7.lan:8000", OK),
        ("edge.example", OK),
        ("lan", MISDIRECTED),
        ("orin-8.lan", MISDIRECTED),
        ("evil.example", MISDIRECTED),
        ("localhost.evil.example:8000", MISDIRECTED),
        ("127.0.0.1.evil.example", MISDIRECTED),
        ("0x7f000001", MISDIRECTED),
        ("2130706433", MISDIRECTED),
        ("evil.example@localhost", BAD),
        ("localhost,evil.example", BAD),  # Host came twice
        ("localhost:80:80", BAD),
        ("localhost/", BAD),
        ("[::1", BAD),
        (":8000", BAD),
    ],
)
def test_the_agent_answers_under_its_own_names_and_addresses_alone(
    host: str, expected: int | None
) -> None:
    assert status("GET", host=host) == expected
    assert status("POST", host=host) == expected


def test_who_sends_no_host_is_no_browser() -> None:
    assert status("GET") == OK
    assert status("POST") == OK


@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT", "PATCH", "OPTIONS"])
@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, OK),
        ({"origin": "http://orin-7:8000"}, OK),
        ({"origin": "https://orin-7:8000"}, OK),  # a proxy in front speaks TLS
        ({"origin": "http://ORIN-7:8000", "sec_fetch_site": "same-origin"}, OK),
        ({"sec_fetch_site": "none"}, OK),
        ({"origin": "http://orin-7:8001"}, FORBIDDEN),
        ({"origin": "http://evil.example"}, FORBIDDEN),
        ({"origin": "null"}, FORBIDDEN),
        ({"origin": ""}, FORBIDDEN),
        ({"sec_fetch_site": "cross-site"}, FORBIDDEN),
        ({"sec_fetch_site": "same-site", "origin": "http://orin-7:8000"}, FORBIDDEN),
        ({"sec_fetch_site": "something-new"}, FORBIDDEN),
    ],
)
def test_a_page_of_another_site_changes_nothing(
    method: str, headers: dict[str, str], expected: int | None
) -> None:
    assert status(method, host="orin-7:8000", **headers) == expected
    assert status("GET", host="orin-7:8000", **headers) == OK


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"nameserver 10.0.0.1\nsearch lan hall.example\n", ("lan", "hall.example")),
        (b"domain lan\n\n# search other\n", ("lan",)),
        (b"search\n\xff\xfe\n", ()),
        (b"", ()),
        (b"search lan\n" * 10_000, ()),
    ],
)
def test_the_domains_of_a_machine_are_those_of_resolv_conf(
    tmp_path: Path, content: bytes, expected: tuple[str, ...]
) -> None:
    file = tmp_path / "resolv.conf"
    assert search_domains(file) == ()
    file.write_bytes(content)
    assert search_domains(file) == expected


@pytest.fixture
def running() -> Iterator[Running]:
    with running_server() as running:
        yield running


def test_a_refusal_comes_before_anything_is_done_with_the_body(running: Running) -> None:
    sent = (
        b"POST /echo HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 5\r\n"
        b"Connection: close\r\n\r\nhello"
    )
    code, body = exchange(running, sent)
    assert code == MISDIRECTED
    assert "evil.example" in body
    assert "allowed_hosts" in body


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with running_agent(make_config(tmp_path_factory.mktemp("agent"))) as agent:
        yield agent


@pytest.mark.slow
def test_a_browser_is_not_lured_into_unloading_a_model(agent: Agent, running: Running) -> None:
    executable = found_browser()
    if executable is None:
        pytest.skip("no Chromium on this machine")
    unload = f"{agent.url}/v2/repository/models/affine/unload"
    with Browser(executable) as page:
        page.open(f"http://localhost:{running.server.url.rpartition(':')[2]}/headers")
        page.evaluate(f"fetch({unload!r}, {{method: 'POST', mode: 'no-cors'}}).then(() => 1)")
        assert "affine" in agent.serving.served
        page.problems.clear()  # the browser notes the status 403
        page.open(f"{agent.url}/")
        page.evaluate(f"fetch({unload!r}, {{method: 'POST'}}).then((answer) => answer.status)")
        assert "affine" not in agent.serving.served
        page.problems.clear()  # the page asks on
