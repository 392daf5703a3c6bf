"""Trials with a real agent process that no service manager watches, and real installations."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from edge.gate.gate import KEPT_REQUESTS
from edge.slots.layout import state_in
from tests.bundles import affine_parts, make_key, write_bundle
from tests.fakes import DEADLINE_S
from tests.models import affine

KEY = make_key()
X = np.array([[1, 2, 3, 4]], np.float32)
BODY = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": X.ravel().tolist()}]}
FAST = ("--probation-s", "1", "--p95-factor", "100", "--memory-factor", "10")


@dataclass(kw_only=True)
class Device:
    """A folder of slots, keys, and an agent of its own."""

    root: Path
    port: int
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def bundle(self, name: str, scale: float, *, golden_scale: float | None = None) -> Path:
        """Write a signed bundle; golden_scale: what its golden answers are made with instead."""
        manifest, files = affine_parts(scale=scale)
        if golden_scale is not None:
            manifest, wrong = affine_parts(scale=golden_scale)
            files = wrong | {path: files[path] for path in files if path.endswith(".onnx")}
        return write_bundle(self.root / name, replace(manifest, version=name), files, KEY)

    def command(self, *words: str) -> list[str]:
        agent = str(Path(sys.executable).with_name("edge-agent"))
        return [agent, *words, "--slots", str(self.root / "slots")]

    def record(self, file: Path, *, requests: int) -> Path:
        """Record so many requests with the command that people use."""
        agent = str(Path(sys.executable).with_name("edge-agent"))
        words = [agent, "capture", str(file), "--url", self.url]
        with subprocess.Popen(words, stderr=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + DEADLINE_S
            while not (file.exists() and file.stat().st_size) and time.monotonic() < deadline:
                assert process.poll() is None
            for _ in range(requests):
                self.answer()
            process.send_signal(signal.SIGINT)
        return file

    def start(self) -> None:
        """Start the agent; nobody restarts it."""
        keys = ("--trusted-keys", str(self.root / "keys"), "--cache", str(self.root / "engines"))
        words = self.command("serve", *keys, "--port", str(self.port), "--no-warm-up",
                             "--allow-capture")  # fmt: skip
        log = (self.root / "agent.log").open("ab")
        with log:
            self._processes.append(subprocess.Popen(words, stderr=log, stdout=log))

    def run(self, *words: str) -> tuple[int, dict[str, Any]]:
        """Run a command that ends with JSON; return its status and that."""
        ended = subprocess.run(
            self.command(*words, "--json"), capture_output=True, timeout=DEADLINE_S, check=False
        )
        return ended.returncode, json.loads(ended.stdout or b"{}")

    def install(self, bundle: Path, *more: str) -> tuple[int, dict[str, Any]]:
        keys = ("--trusted-keys", str(self.root / "keys"), "--port", str(self.port))
        return self.run("install", str(bundle), *keys, *FAST, *more)

    def roll_back(self, reason: str) -> None:
        keys = ("--trusted-keys", str(self.root / "keys"))
        status, result = self.run("rollback", "--reason", reason, *keys)
        assert status == 0, result

    def answer(self) -> list[float]:
        outputs = httpx.post(f"{self.url}/v2/models/affine/infer", json=BODY).json()["outputs"]
        data: list[float] = next(o["data"] for o in outputs if o["name"] == "y")
        return data

    def await_answer(self, wanted: list[float]) -> None:
        """Wait until this is what it answers."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError, KeyError):
                if self.answer() == wanted:
                    return
        assert self.answer() == wanted

    def await_trial(self) -> None:
        """Wait until it serves a trial."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                slots = httpx.get(f"{self.url}/telemetry").json()["slots"]
                if slots is not None and slots["phase"] == "trial":
                    return
        raise AssertionError("no trial is served")

    def await_nobody(self) -> None:
        """Wait until nobody listens."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            try:
                httpx.get(f"{self.url}/v2/health/live")
            except httpx.ConnectError:
                return
            except httpx.TransportError:
                continue  # it is about to
        raise AssertionError("it still listens")

    def close(self) -> None:
        for process in self._processes:
            process.terminate()
            process.wait(DEADLINE_S)


def expected(scale: float) -> list[float]:
    data: list[float] = affine(X, scale=scale)["y"].ravel().tolist()
    return data


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "site.pub").write_bytes(KEY.public_pem)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with contextlib.closing(Device(root=tmp_path, port=port)) as made:
        yield made


def telemetry(device: Device) -> dict[str, Any]:
    report: dict[str, Any] = httpx.get(f"{device.url}/telemetry").json()
    return report


def test_first_good_bad_and_back_by_hand_with_one_agent_that_is_never_restarted(
    device: Device,
) -> None:
    device.start()  # with nothing installed it waits
    status, result = device.install(device.bundle("one", 2.0))
    assert (status, result["result"]) == (0, "committed"), result
    assert device.answer() == expected(2.0)
    assert telemetry(device)["slots"] == {"slot": "a", "phase": "committed"}

    status, result = device.install(device.bundle("two", 3.0))
    assert (status, result["result"]) == (0, "committed"), result
    names = [check["name"] for check in result["report"]["checks"]]
    assert names == [
        "ready",
        "affine backend",
        "affine golden answers",
        "affine p95 latency",
        "no interruption",
        "no error burst",
        "peak memory",
    ]
    latency = result["report"]["checks"][3]
    assert "before" in latency["limit"]  # measured against the first bundle, on this machine
    assert device.answer() == expected(3.0)

    device.roll_back("the old one was better")
    device.await_answer(expected(2.0))

    bad = device.bundle("bad", 5.0, golden_scale=7.0)
    status, result = device.install(bad)
    assert (status, result["result"]) == (1, "rolled-back"), result
    assert "cannot be served" in result["reason"]  # the agent said so at once
    assert result["report"]["serves"] == telemetry(device)["bundle"]["manifest_sha256"]
    assert device.answer() == expected(2.0)

    assert device.install(bad) == (1, {})  # refused, without a trial
    refused = {one.reason for one in state_in(device.root / "slots").refused}
    assert "the old one was better" in refused
    assert len(refused) == 2


@pytest.mark.slow
def test_a_request_under_way_at_the_switch_is_answered(device: Device) -> None:
    device.start()
    assert device.install(device.bundle("one", 2.0))[0] == 0
    answers: list[list[float]] = []
    closed: list[None] = []
    over = threading.Event()

    def ask() -> None:
        with httpx.Client() as client:
            while not over.is_set():
                try:
                    answer = client.post(f"{device.url}/v2/models/affine/infer", json=BODY)
                except httpx.ConnectError:
                    continue  # between the two processes nobody listens
                except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                    closed.append(None)  # a kept connection, closed while idle
                    continue
                if answer.status_code == 503:
                    continue  # live, and not ready yet
                data = answer.raise_for_status().json()["outputs"]
                answers.append(next(o["data"] for o in data if o["name"] == "y"))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        status, result = device.install(device.bundle("two", 3.0))
    finally:
        over.set()
        thread.join()
    assert status == 0, result
    assert len(closed) <= 1  # one process ended, and it had one connection that was idle
    switched = answers.index(expected(3.0))
    assert answers[:switched] == [expected(2.0)] * switched
    assert answers[switched:] == [expected(3.0)] * (len(answers) - switched)


@pytest.mark.slow
def test_a_rollback_by_hand_ends_the_probation(device: Device) -> None:
    device.start()
    assert device.install(device.bundle("one", 2.0))[0] == 0
    two = device.bundle("two", 3.0)
    found: list[tuple[int, dict[str, Any]]] = []
    thread = threading.Thread(
        target=lambda: found.append(device.install(two, "--probation-s", "600"))
    )
    thread.start()
    device.await_trial()
    device.roll_back("changed my mind")
    thread.join(DEADLINE_S)
    ((status, result),) = found
    assert (status, result["result"]) == (1, "cancelled")
    assert "changed my mind" in result["report"]["reason"]
    assert device.answer() == expected(2.0)


def test_a_first_bundle_that_is_rolled_back_is_served_no_longer(device: Device) -> None:
    device.start()
    keys = ("--trusted-keys", str(device.root / "keys"), "--port", str(device.port))
    words = device.command("install", str(device.bundle("one", 2.0)), *keys, "--probation-s", "600")
    with subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        device.await_trial()
        device.roll_back("it does not see")
        assert process.wait(DEADLINE_S) == 1
    device.await_nobody()
    status, result = device.install(device.bundle("two", 3.0))
    assert (status, result["result"]) == (0, "committed"), result
    assert device.answer() == expected(3.0)


@pytest.mark.slow
def test_a_trial_whose_gate_was_killed_is_finished_by_the_next(device: Device) -> None:
    device.start()
    assert device.install(device.bundle("one", 2.0))[0] == 0
    keys = ("--trusted-keys", str(device.root / "keys"), "--port", str(device.port))
    words = device.command("install", str(device.bundle("two", 3.0)), *keys, "--probation-s", "600")
    with subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        device.await_trial()
        process.kill()
    status, report = device.run("gate", "--port", str(device.port), *FAST)
    assert (status, report["verdict"]) == (0, "committed"), report
    # What was measured before the power went is still what it is held against.
    assert "before" in next(c for c in report["checks"] if "latency" in c["name"])["limit"]
    assert device.run("gate", "--port", str(device.port)) == (0, {"verdict": "nothing-on-trial"})


@pytest.mark.parametrize("goes", ["the terminal", "the reader"])
def test_a_judge_whose_terminal_or_reader_goes_away_ends_its_trial(
    device: Device, goes: str
) -> None:
    device.start()
    keys = ("--trusted-keys", str(device.root / "keys"), "--port", str(device.port))
    words = device.command("install", str(device.bundle("one", 2.0)), *keys, *FAST)
    reader, writer = os.pipe()
    with subprocess.Popen(words, stderr=writer, stdout=writer) as process:
        os.close(writer)
        device.await_trial()
        if goes == "the terminal":
            process.send_signal(signal.SIGHUP)
        else:
            os.close(reader)
        process.wait(DEADLINE_S)
    if goes == "the terminal":
        os.close(reader)
    state = state_in(device.root / "slots")
    assert state.candidate is None
    assert state.last is not None
    assert (state.last.result, state.last.bundle.version) == ("committed", "one")


@pytest.mark.slow
def test_a_judge_that_waits_takes_over_from_one_that_is_killed(device: Device) -> None:
    device.start()
    assert device.install(device.bundle("one", 2.0))[0] == 0
    keys = ("--trusted-keys", str(device.root / "keys"), "--port", str(device.port))
    words = device.command("install", str(device.bundle("two", 3.0)), *keys, "--probation-s", "600")
    waiting = device.command("gate", "--port", str(device.port), *FAST, "--wait", "--json")
    with subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        device.await_trial()
        assert device.run("gate", "--port", str(device.port), *FAST)[0] == 1  # it is being judged
        with subprocess.Popen(waiting, stdout=subprocess.PIPE) as other:
            process.kill()
            report, _ = other.communicate(timeout=DEADLINE_S)
    assert json.loads(report)["verdict"] == "committed"
    assert device.answer() == expected(3.0)


def test_an_agent_that_never_comes_fails_the_trial(device: Device) -> None:
    status, result = device.install(device.bundle("one", 2.0), "--ready-s", "1")
    assert (status, result["result"]) == (1, "rolled-back")
    (check,) = result["report"]["checks"]
    assert check["name"] == "ready"
    assert "no answer" in check["reason"]
    assert result["report"]["serves"] is None


@pytest.mark.slow
def test_recorded_requests_must_be_answered_as_by_the_bundle_before(device: Device) -> None:
    device.start()
    assert device.install(device.bundle("one", 2.0))[0] == 0
    capture = device.record(device.root / "requests.capture", requests=5)
    status, result = device.install(device.bundle("same", 2.0), "--replay", str(capture))
    checks = {check["name"]: check for check in result["report"]["checks"]}
    assert (status, checks["replay answers"]["passed"]) == (0, True)
    assert checks["replay answers"]["measured"] == "0 of 5 requests differ"
    status, result = device.install(device.bundle("other", 9.0), "--replay", str(capture))
    assert (status, result["result"]) == (1, "rolled-back")
    assert "5 of 5 requests differ" in result["reason"]
    assert device.answer() == expected(2.0)

    kept = shutil.copy(capture, device.root / "slots" / KEPT_REQUESTS)  # for every bundle to come
    status, result = device.install(device.bundle("another", 8.0))
    assert (status, result["result"]) == (1, "rolled-back")
    assert "5 of 5 requests differ" in result["reason"]
    Path(kept).write_bytes(b"damaged")
    status, result = device.install(device.bundle("last", 7.0))
    assert (status, result["result"]) == (0, "committed")
