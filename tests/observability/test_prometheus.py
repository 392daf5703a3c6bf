"""A real Prometheus scrapes two real agents, and tells when one leaks and when one is killed."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from edge.agent_process import agent_process
from tests.agents import make_config, unused_port
from tests.edge.test_agent import BODY
from tests.observability.leaking_agent import KEPT_BYTES
from tests.observability.promql import DEPLOY

pytestmark = [
    pytest.mark.observability,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs prometheus"),
]
REPOSITORY = Path(__file__).parents[2]
DEADLINE_S = 160.0  # the leak alarm warms up for 30 s and looks at 48 s then
KEYS = ("alertname", "device", "alarm")
PAUSE_S = 0.02  # between two requests


class Prometheus:
    """What its HTTP API says."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=5.0)

    def close(self) -> None:
        self._client.close()

    def query(self, expr: str) -> dict[str, float]:
        """Return the value of an expression by device."""
        rows = self._get("query", query=expr)["result"]
        return {row["metric"].get("device", ""): float(row["value"][1]) for row in rows}

    def firing(self) -> dict[tuple[str, ...], dict[str, Any]]:
        """Return the alerts that fire, by name, device and alarm of an agent."""
        alerts = self._get("alerts")["alerts"]
        return {
            tuple(alert["labels"][k] for k in KEYS if k in alert["labels"]): alert
            for alert in alerts
            if alert["state"] == "firing"
        }

    def _get(self, what: str, **params: str) -> Any:
        return self._client.get(f"/api/v1/{what}", params=params).raise_for_status().json()["data"]

    def wait(self, condition: Callable[[Prometheus], bool]) -> None:
        pause, deadline = threading.Event(), time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):  # while it starts
                if condition(self):
                    return
            pause.wait(0.2)
        raise AssertionError(f"it never came to this; firing: {self.firing()}")


def stop(process: subprocess.Popen[Any]) -> None:
    process.terminate()
    try:
        process.wait(30.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def running_prometheus(folder: Path, targets: dict[str, str]) -> Iterator[Prometheus]:
    """Run what is in deploy/ with a second instead of quarters of a minute."""
    shutil.copytree(DEPLOY / "prometheus", folder)
    config = folder / "prometheus.yml"
    config.write_text(re.sub(r"(_interval|_timeout): \d+s", r"\1: 1s", config.read_text()))
    rules = folder / "rules" / "alerts.yml"
    rules.write_text(re.sub(r"for: \w+", "for: 2s", rules.read_text()))
    groups = [
        {"targets": [url.removeprefix("http://")], "labels": {"device": device}}
        for device, url in targets.items()
    ]
    (folder / "targets" / "fleet.json").write_text(json.dumps(groups))
    address = f"127.0.0.1:{unused_port()}"
    command = [
        "prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}", "--log.level=warn",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log)
    prometheus = Prometheus(f"http://{address}")
    try:
        yield prometheus
    finally:
        prometheus.close()
        stop(process)


@contextlib.contextmanager
def leaking_agent(folder: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "tests.observability.leaking_agent", str(folder)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        stop(process)
        process.stdout.close()


@contextlib.contextmanager
def asked(*urls: str) -> Iterator[None]:
    """Send requests to each agent, one after the other."""
    ended = threading.Event()

    def ask(url: str) -> None:
        with httpx.Client(base_url=url) as client:
            while not ended.wait(PAUSE_S):
                with contextlib.suppress(httpx.TransportError):  # once it is killed
                    client.post("/v2/models/affine/infer", json=BODY)

    threads = [threading.Thread(target=ask, args=(url,), name=f"ask {url}") for url in urls]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def test_an_alert_fires_for_an_agent_that_leaks_and_for_one_that_is_killed(tmp_path: Path) -> None:
    for name in ("sound", "leaky"):
        (tmp_path / name).mkdir()
        make_config(tmp_path / name)
    flags = ["--bundle", "bundle", "--trusted-keys", "keys", "--port", "0"]
    with (
        agent_process(tmp_path / "sound", flags) as (sound_url, sound),
        leaking_agent(tmp_path / "leaky") as leaky_url,
        running_prometheus(
            tmp_path / "prometheus", {"sound": sound_url, "leaky": leaky_url}
        ) as prometheus,
    ):
        prometheus.wait(lambda p: p.query("up") == {"sound": 1.0, "leaky": 1.0})
        with asked(sound_url, leaky_url):
            prometheus.wait(lambda p: ("EdgeAlarm", "leaky", "memory-leak") in p.firing())
            # Not what depends on the machine of the test, as how hot it is.
            firing = {key: a for key, a in prometheus.firing().items() if "memory-leak" in key}
            (alert,) = firing.values()
            assert alert["annotations"]["summary"] == "memory-leak on leaky"
            alarms = httpx.get(f"{leaky_url}/telemetry").json()["alarms"]
            (detail,) = (alarm["detail"] for alarm in alarms if alarm["name"] == "memory-leak")
            found = re.match(r"resident memory grows by ([\d,]+) bytes", detail)
            assert found is not None, detail
            # The allocator keeps a header with each, and the agent has noise of its own.
            assert int(found[1].replace(",", "")) == pytest.approx(KEPT_BYTES, rel=0.2)
            success = prometheus.query("model:edge_success:ratio_rate5m")
            assert success == {"sound": 1.0, "leaky": 1.0}
            p99_s = prometheus.query("model:edge_request_seconds:p99_rate5m")
            assert set(p99_s) == {"sound", "leaky"}
            sound.kill()
            prometheus.wait(lambda p: ("EdgeDeviceDown", "sound") in p.firing())
            assert ("EdgeDeviceDown", "leaky") not in prometheus.firing()
