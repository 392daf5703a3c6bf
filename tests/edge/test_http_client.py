from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from edge.errors import NoAgentError, UsageError
from edge.http_client import Address, AgentClient, address_from_url
from tests.agents import make_config, running_agent, unused_port
from tests.fakes import DEADLINE_S, wait_until


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://x", Address(host="x", port=80)),
        ("http://x:8000/", Address(host="x", port=8000)),
        ("https://x", Address(host="x", port=443, scheme="https")),
        ("http://[::1]:8000", Address(host="::1", port=8000)),
        ("https://x:1/a/b/", Address(host="x", port=1, scheme="https", prefix="/a/b")),
    ],
)
def test_an_address_is_what_its_url_says_and_says_it_again(url: str, expected: Address) -> None:
    assert address_from_url(url) == expected
    assert address_from_url(str(expected)) == expected


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:8000", "http://", "http://x:y", "http://x:99999", "ftp://x", "http://x/?a=b", "x"],
)
def test_a_url_that_is_none_is_a_usage_error(url: str) -> None:
    with pytest.raises(UsageError, match="http://HOST:PORT"):
        AgentClient(url)


def test_nobody_at_the_address_is_one_error_that_says_what_to_do() -> None:
    url = f"http://127.0.0.1:{unused_port()}"
    with (
        closing(AgentClient(url)) as client,
        pytest.raises(NoAgentError, match=f"{url}: connection refused; start an agent there"),
    ):
        client.send("GET", "/v2")


def test_a_kept_connection_that_the_agent_closed_is_made_anew(tmp_path: Path) -> None:
    with running_agent(make_config(tmp_path)) as agent:
        client = AgentClient(agent.url + "/", timeout_s=DEADLINE_S)
        assert client.send("GET", "/v2/health/ready").status == 200
        for connection in tuple(agent._server._connections):
            agent._server.loop.call(connection.abort)
        wait_until(lambda: not agent._server._connections)
        assert client.send("GET", "/v2/health/ready").status == 200
        client.close()
