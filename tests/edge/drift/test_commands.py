from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from edge.cli import cli
from edge.errors import NoAgentError
from tests.agents import make_config, running_agent, unused_port
from tests.bundles import affine_parts
from tests.edge.drift.test_served import RNG, ask, content_of_reference, drift_of, parts_with
from tests.fakes import wait_until


def run(*words: str):
    return CliRunner().invoke(cli, ["drift", "status", *words], standalone_mode=False)


@pytest.mark.parametrize(("shift", "state", "status"), [(0.0, "steady", 0), (3.0, "drifted", 1)])
def test_status_says_the_state_and_exits_by_it(tmp_path, shift, state, status):
    config = make_config(tmp_path, parts_with(content_of_reference()), drift_window=50)
    with running_agent(config) as agent:
        ask(agent.url, RNG.normal(size=(50, 4)) + shift)
        wait_until(lambda: drift_of(agent.url)["windows"] == 1)
        told, as_json = run("--url", agent.url), run("--url", agent.url, "--json")
    assert told.return_value == as_json.return_value == status
    assert f"affine: {state}, the last 50 rows" in told.output
    assert json.loads(as_json.output)["affine"]["state"] == state


def test_status_says_what_is_not_watched(tmp_path):
    with running_agent(make_config(tmp_path, affine_parts())) as agent:
        ask(agent.url, np.zeros((1, 4)))
        told = run("--url", agent.url)
    assert told.return_value == 0
    assert "no drift reference" in told.output


def test_an_agent_that_is_not_there_is_an_error_of_one_line():
    told = run("--url", f"http://127.0.0.1:{unused_port()}")
    assert isinstance(told.exception, NoAgentError)
