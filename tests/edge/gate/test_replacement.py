"""An agent that makes way for the next bundle, and one that is told to stop meanwhile."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx

from edge.slots.store import Store
from tests.agents import make_config, running_agent
from tests.bundles import affine_parts, write_bundle
from tests.edge.slots.slot_bundles import KEY, Packed, read, stage
from tests.fakes import DEADLINE_S, FakeSession, Gate, wait_until

BODY = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}


def bundle(folder: Path) -> Packed:
    """A bundle that the fake session computes as promised, called after its folder."""
    manifest, files = affine_parts()
    return read(write_bundle(folder, replace(manifest, version=folder.name), files, KEY))


def test_who_is_told_to_stop_while_he_makes_way_has_no_follower(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "slots")
    config = replace(make_config(tmp_path), slots=store.root)
    (config.trusted_keys / "test.pub").write_bytes(KEY.public_pem)
    with store.changing("test"):
        one = bundle(tmp_path / "one")
        stage(store, one)
        store.begin_trial()
    gate = Gate(holds=False)
    with (
        running_agent(config, open_session=lambda *_: FakeSession(before_run=gate)) as agent,
        ThreadPoolExecutor(1) as pool,
    ):
        gate.hold()
        url = f"{agent.url}/v2/models/affine/infer"
        asked = pool.submit(httpx.post, url, json=BODY, timeout=DEADLINE_S)
        gate.wait_entered()
        with store.changing("test"):
            store.commit(one.id)
            stage(store, bundle(tmp_path / "two"))
            store.begin_trial()
        wait_until(lambda: agent.is_replaced)
        agent.request_stop()  # what SIGTERM does
        gate.open()
        assert asked.result().status_code == 200
    assert not agent.is_replaced
