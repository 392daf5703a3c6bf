"""A running agent, asked over HTTP, while its channel is attacked and then healed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from tritonclient.http import InferenceServerClient, InferInput

from edge.config import AgentConfig
from tests.agents import running_agent
from tests.channel.sites import Device, Site

ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)


def answer_of(url: str) -> np.ndarray:
    """Return what the agent answers, through a client that is not ours."""
    client = InferenceServerClient(url.removeprefix("http://"))
    try:
        asked = InferInput("x", list(ROWS.shape), "FP32")
        asked.set_data_from_numpy(ROWS)
        found: np.ndarray = client.infer("affine", [asked]).as_numpy("y")
        return found
    finally:
        client.close()


def test_an_agent_answers_as_before_while_updates_are_refused_and_as_new_after_one(
    tmp_path: Path,
) -> None:
    site = Site(tmp_path)
    site.release("1", scale=2.0)
    mirror = tmp_path / "mirror"
    shutil.copytree(site.channel, mirror)
    follower = Device(tmp_path / "device", site.anchor, mirror)
    assert follower.install().code == 0
    config = AgentConfig(
        slots=follower.slots, trusted_keys=follower.keys, port=0, warm_up=False,
        intra_op_threads=1, cache=tmp_path / "engines",
    )  # fmt: skip
    with running_agent(config) as agent:
        np.testing.assert_allclose(answer_of(agent.url), 2.0 * ROWS + 1.0, rtol=1e-6)
        timestamp = mirror / "metadata/timestamp.json"
        timestamp.write_bytes(timestamp.read_bytes().replace(b'"version":', b'"version":9'))
        assert follower.install().error is not None
        np.testing.assert_allclose(answer_of(agent.url), 2.0 * ROWS + 1.0, rtol=1e-6)
    site.release("2", scale=5.0)
    shutil.rmtree(mirror)
    shutil.copytree(site.channel, mirror)
    assert follower.install().code == 0
    with running_agent(config) as agent:
        np.testing.assert_allclose(answer_of(agent.url), 5.0 * ROWS + 1.0, rtol=1e-6)
