"""Every device is asked, and what is wrong with it is told apart: a thousand of them, and liars."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge.errors import UsageError
from host_tools.fleet.answers import facts_from, report_from_body
from host_tools.fleet.fetching import MAX_ANSWER_BYTES, _request
from host_tools.fleet.inventory import Device
from host_tools.fleet.polling import DeviceStatus, Poller, agent_address
from tests.agents import make_config, running_agent, unused_port
from tests.fakes import DEADLINE_S
from tests.host_tools.flash.devices import HOST, needs_sshd, running_device
from tests.simulated_agents import ESCAPE, address_of, simulated_agents

SHORT_S = 0.5  # for those that never answer


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with simulated_agents() as port:
        yield port


def device(kind: str, port: int, number: int = 1) -> Device:
    url = f"http://{address_of(kind, number)}:{port}"
    return Device(name=f"{kind}-{number}", host="unused", url=url)


def ask(device: Device, deadline_s: float = DEADLINE_S) -> DeviceStatus:
    return asyncio.run(Poller(deadline_s=deadline_s, rng=random.Random(1)).ask(device))


@pytest.mark.parametrize(
    ("host", "named"),
    [("orin.local", "orin.local"), ("fe80::1", "[fe80::1]"), ("fe80::1%eth0", "[fe80::1]")],
)
def test_an_agent_is_named_with_brackets_where_it_needs_them_and_without_a_zone(
    host: str, named: str
) -> None:
    address = agent_address(Device(name="a", host=host))
    assert f"\r\nHost: {named}:8000\r\n".encode() in _request(address, "/telemetry")


@pytest.mark.slow
def test_each_of_a_thousand_devices_is_classified_right(port: int) -> None:
    kinds = ["silent"] * 30 + ["dead"] * 20 + ["lying"] * 10 + ["ok"] * 940
    random.Random(7).shuffle(kinds)
    nobody = f"http://127.0.0.1:{unused_port()}"
    devices = [
        Device(name=f"{kind}-{number}", host="unused", url=nobody)
        if kind == "dead"
        else device(kind, port, number)
        for number, kind in enumerate(kinds)
    ]
    found = asyncio.run(Poller(deadline_s=4.0).poll(devices))
    assert [status.device for status in found] == [device.name for device in devices]
    assert Counter((status.device.split("-")[0], status.state) for status in found) == {
        ("silent", "timeout"): 30,
        ("dead", "unreachable"): 20,
        ("lying", "malformed"): 10,
        ("ok", "ok"): 940,
    }
    # Each answer is its own device's: a simulated agent tells its number as a latency.
    loads = {s.device: s.facts.p50_ms for s in found if s.facts is not None}
    assert loads == {
        f"ok-{number}": 10.0 + number % 50 for number, kind in enumerate(kinds) if kind == "ok"
    }


@pytest.mark.parametrize(
    ("kind", "state", "words"),
    [
        ("not-ready", "not-ready", "the GPU fell off the bus"),
        ("full", "not-ready", "503"),
        ("alarm", "degraded", "hot: the GPU has 96 °C"),
        ("drift", "degraded", "drift of detector"),
        ("worker-down", "degraded", "1 of 2 workers"),
        ("endless-body", "malformed", f"larger than {MAX_ANSWER_BYTES} bytes"),
        ("endless-head", "malformed", f"larger than {MAX_ANSWER_BYTES} bytes"),
        ("endless-chunks", "malformed", f"larger than {MAX_ANSWER_BYTES} bytes"),
        ("large-length", "malformed", "not HTTP"),
        ("redirect", "malformed", "a redirect, which is not followed"),
        ("gzip", "malformed", "compressed"),
        ("html", "malformed", "text/html instead of application/json"),
        ("huge-number", "malformed", "uptime_s"),
        ("percent", "malformed", "utilization_percent"),
        ("nan", "malformed", "not JSON"),
        ("bad-utf8", "malformed", "utf-8"),
        ("deep", "malformed", "recursion"),
        ("other-json", "malformed", "no report of an agent"),
        ("cut-off", "malformed", "cut off"),
        ("banner", "malformed", "not HTTP"),
        ("absent", "malformed", "404"),
        ("no-answer", "unreachable", "closed the connection"),
    ],
)
def test_an_answer_that_is_none_is_told_in_words(
    port: int, kind: str, state: str, words: str
) -> None:
    status = ask(device(kind, port))
    assert (status.state, words in (status.reason or "")) == (state, True), status.reason


@pytest.mark.parametrize(
    ("kind", "words"), [("silent", "does not answer"), ("drip", "bytes of an answer came")]
)
def test_a_deadline_bounds_connection_head_and_body_in_all(
    port: int, kind: str, words: str
) -> None:
    status = ask(device(kind, port), SHORT_S)
    assert status.state == "timeout"
    assert words in (status.reason or "")


@pytest.mark.parametrize("kind", ["ok", "older", "newer", "flaky"])
def test_agents_of_other_versions_and_one_lost_connection_are_no_trouble(
    port: int, kind: str
) -> None:
    status = ask(device(kind, port))
    assert (status.state, status.reason) == ("ok", None)


def test_what_an_older_agent_does_not_tell_stays_unknown(port: int) -> None:
    facts = ask(device("older", port)).facts
    assert facts is not None
    assert (facts.agent, facts.requests) == ("0.1.0", 5)
    assert (facts.bundle, facts.p95_ms, facts.gpu_percent, facts.throttled) == (None,) * 4


@pytest.mark.parametrize(("number", "state"), [(2, "ok"), (1, "not-ready")])
def test_an_agent_whose_report_tells_no_readiness_is_asked_for_it(
    port: int, number: int, state: str
) -> None:
    assert ask(device("tells-by-health", port, number)).state == state


def test_no_escape_of_a_device_is_left_in_what_is_kept_of_it(port: int) -> None:
    status = ask(device("escape", port))
    assert status.facts is not None
    said = [status.reason or "", status.facts.bundle or "", status.facts.agent or ""]
    said += [*status.facts.alarms, *status.facts.troubles]
    assert len(said) == 5
    assert all(text and text.isprintable() for text in said)
    assert not set(ESCAPE) & set("".join(said)) - set("]0;owned[2J31m")
    assert max(map(len, said)) <= 300


def test_a_real_agent_is_read_field_by_field(tmp_path: Path) -> None:
    with running_agent(make_config(tmp_path)) as agent:
        status = ask(Device(name="line-1", host="127.0.0.1", url=agent.url))
    assert (status.state, status.reason) == ("ok", None)
    assert status.facts is not None
    assert status.facts.bundle is not None
    assert len(status.facts.bundle.split()) == 2
    assert (status.facts.requests, status.facts.alarms, status.facts.drifted) == (0, (), ())
    assert status.facts.uptime_s is not None
    assert list(status.facts.variants)


def test_names_that_lead_nowhere_are_unreachable() -> None:
    status = ask(Device(name="line-1", host="no-such-name.invalid"))
    assert status.state == "unreachable"
    assert "its name" in (status.reason or "")
    long = ask(Device(name="line-2", host="a" * 200))
    assert long.state == "unreachable"


def test_a_resolver_that_hangs_holds_up_nobody_else(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_over, real = threading.Event(), socket.getaddrinfo

    def resolver(host: str, *rest: Any) -> Any:
        if host == "hangs" and rest[-1] != socket.AI_NUMERICHOST:
            is_over.wait(DEADLINE_S)
        return real(host, *rest)

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    devices = [Device(name=f"d{n}", host="hangs") for n in range(3)]
    found = asyncio.run(Poller(deadline_s=SHORT_S).poll([*devices, device("ok", port)]))
    is_over.set()
    assert [status.state for status in found] == ["timeout", "timeout", "timeout", "ok"]
    assert found[0].reason == "no connection within 0.5 s"


def test_a_url_that_is_none_is_told_before_anybody_is_asked(port: int) -> None:
    wrong = Device(name="a", host="x", url="http://x:99999")
    with pytest.raises(UsageError, match="99999"):
        asyncio.run(Poller().poll([device("silent", port), wrong]))


def test_little_is_kept_of_a_report_that_lists_as_much_as_it_may() -> None:
    names = ",".join(f'{{"name": "m{n}", "variant": "v", "ready": false}}' for n in range(9000))
    body = f'{{"ready": true, "agent_version": "1", "models": [{names}]}}'.encode()
    assert 300_000 < len(body) < MAX_ANSWER_BYTES
    facts = facts_from(report_from_body(body))
    assert (len(facts.variants), len(facts.troubles)) == (16, 16)


def test_an_agent_listens_where_the_inventory_says_or_at_port_8000() -> None:
    plain = Device(name="a", host="10.0.0.1")
    assert str(agent_address(plain)) == "http://10.0.0.1:8000"
    assert str(agent_address(plain, by_ssh=True)) == "http://127.0.0.1:8000"
    named = Device(name="a", host="10.0.0.1", url="https://[fe80::1]:9/x")
    assert str(agent_address(named)) == "https://[fe80::1]:9/x"


def test_a_certificate_that_nobody_vouches_for_is_unreachable(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    words += ["-nodes", "-keyout", key, "-out", certificate, "-subj", "/CN=x", "-days", "2"]
    subprocess.run(words, check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with pytest.raises(ssl.SSLError), connection:
            tls.wrap_socket(connection, server_side=True)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        port = listener.getsockname()[1]
        status = ask(Device(name="line-1", host="unused", url=f"https://127.0.0.1:{port}"))
        thread.join(DEADLINE_S)
    assert status.state == "unreachable"
    assert "self-signed certificate" in (status.reason or "")


@needs_sshd
def test_an_agent_behind_a_real_sshd_is_asked_through_it(port: int, tmp_path: Path) -> None:
    with running_device(tmp_path / "device") as there:
        poller = Poller(by_ssh=True, ssh_config=there.ssh_config, deadline_s=DEADLINE_S)
        devices = [
            Device(name="a", host=HOST, url=device("ok", port).url),
            Device(name="b", host=HOST, url=device("lying", port).url),
            Device(name="c", host=HOST, url=f"http://127.0.0.1:{unused_port()}"),
            Device(name="d", host="127.0.0.1", port=unused_port()),
        ]
        found = asyncio.run(poller.poll(devices))
        assert [status.state for status in found] == [
            "ok", "malformed", "unreachable", "unreachable",
        ]  # fmt: skip
        assert "refused" in (found[2].reason or "")  # by the device, to its sshd
        assert "refused" in (found[3].reason or "")  # by the device, to us
        silent = Device(name="e", host=HOST, url=device("silent", port).url)
        late = asyncio.run(replace(poller, deadline_s=1.0).ask(silent))
    assert late.state == "timeout"
