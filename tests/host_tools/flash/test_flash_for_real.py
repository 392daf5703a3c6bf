"""The real agent, from a wheelhouse, onto a device over SSH, serving real bundles on the CPU."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from edge.http_client import AgentClient
from edge.oip_client import infer
from host_tools.cli import cli
from tests.host_tools.flash.devices import HOST, files_in, needs_sshd, running_device
from tests.host_tools.flash.payloads import ARCH, PYTHON, Factory
from tests.models import affine, affine_model

pytestmark = [needs_sshd, pytest.mark.slow]


def test_a_device_serves_what_was_flashed_is_upgraded_and_goes_back(tmp_path):
    factory = Factory(tmp_path / "here")
    house = tmp_path / "house"
    words = ["wheelhouse", "--for", ARCH, "--python", PYTHON, "--extra", "ort", "--out", str(house)]
    made = CliRunner().invoke(cli, words, standalone_mode=False)
    assert made.exception is None, made.output
    with running_device(tmp_path / "device") as device:
        config = tmp_path / "agent.json"
        own = {"port": device.port, "warm_up": False, "intra_op_threads": 1}
        config.write_text(json.dumps({**own, "cache": str(device.root / "var/cache")}))

        def flash(bundle):
            flags = ["--wheelhouse", house, "--key", factory.public, "--config", config, "--json"]
            flags += ["--ssh-config", device.ssh_config, "--device-root", device.root]
            given = [str(word) for word in ["flash", HOST, bundle, *flags]]
            result = CliRunner().invoke(cli, given, standalone_mode=False)
            assert result.exception is None, result.output
            return result.return_value, json.loads(result.stdout), result.stderr

        def scale_that_is_served():
            client = AgentClient(f"http://127.0.0.1:{device.port}")
            x = np.ones((1, 4), dtype=np.float32)
            try:
                y = infer(client, "affine", {"x": x})["y"]
            finally:
                client.close()
            return next(s for s in (2.0, 3.0, 5.0) if np.allclose(y, affine(x, scale=s)["y"], 0.1))

        status, report, talk = flash(factory.bundle("first", scale=2.0, version="1"))
        steps = {step["step"]: step["changed"] for step in report["steps"]}
        assert steps["agent"], talk
        assert "doctor" in steps, talk
        assert steps["switch"], talk
        assert (status, report["state"]) == (0, "done"), talk
        assert scale_that_is_served() == 2.0

        before = files_in(device.root / "etc")
        status, report, talk = flash(tmp_path / "here/first")
        assert (status, report["changed"]) == (0, False), talk
        assert files_in(device.root / "etc") == before

        status, report, talk = flash(factory.bundle("second", scale=3.0, version="2"))
        assert (status, report["state"]) == (0, "done"), talk
        assert scale_that_is_served() == 3.0

        # Its golden outputs are those of another model.
        wrong = affine_model(scale=5.0).SerializeToString()
        bad = factory.bundle("bad", version="3", graphs={"int8": wrong, "fp32": wrong})
        status, report, talk = flash(bad)
        assert (status, report["state"]) == (1, "rolled-back"), talk
        assert scale_that_is_served() == 3.0
