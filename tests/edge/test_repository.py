"""Models that come and go in a running agent, asked for by tritonclient."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from edge.admission import Admission
from edge.agent import Agent
from edge.choice import Candidate
from edge.config import AgentConfig
from edge.errors import ConfigError, EdgeError
from edge.manifest import Manifest
from edge.target import Target
from tests.agents import open_agent, running_agent
from tests.bundles import TestKey, affine_parts, joined_parts, make_key, write_bundle
from tests.fakes import DEADLINE_S, FakeNotifier, FakeSession, Gate
from tests.models import affine

X = np.array([[1, 2, 3, 4]], np.float32)
OTHER = affine_parts(name="other", scale=-1.0)


class Site:
    """A device with a bundle in its place, and the key of who may replace it."""

    def __init__(self, folder: Path) -> None:
        self.key: TestKey = make_key()
        self.root = folder / "bundle"
        self._folder = folder
        (folder / "keys").mkdir()
        (folder / "keys" / "test.pub").write_bytes(self.key.public_pem)
        self.put(joined_parts(affine_parts(), OTHER))

    def put(self, parts: tuple[Manifest, dict[str, bytes]]) -> None:
        """Put a bundle in the place of the one that is there."""
        fresh = write_bundle(self._folder / "fresh", *parts, self.key)
        shutil.rmtree(self.root, ignore_errors=True)
        fresh.rename(self.root)

    def config(self, **changes: Any) -> AgentConfig:
        defaults: dict[str, Any] = {
            "bundle": self.root,
            "trusted_keys": self._folder / "keys",
            "port": 0,
            "intra_op_threads": 1,
            "warm_up": False,
        }
        return AgentConfig(**{**defaults, **changes})


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def ask() -> Iterator[Callable[[Agent], triton.InferenceServerClient]]:
    clients = []

    def ask(agent: Agent) -> triton.InferenceServerClient:
        clients.append(triton.InferenceServerClient(agent.url.removeprefix("http://")))
        return clients[-1]

    yield ask
    for client in clients:
        client.close()


def answer(client: triton.InferenceServerClient, model: str = "affine") -> np.ndarray:
    tensor = triton.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(X)
    array = client.infer(model, [tensor]).as_numpy("y")
    assert array is not None
    return array


def expected(scale: float) -> np.ndarray:
    return affine(X, scale=scale)["y"]


def states(client: triton.InferenceServerClient) -> dict[str, str]:
    return {entry["name"]: entry["state"] for entry in client.get_model_repository_index()}


def refused(call: Callable[[], object]) -> tuple[str, str]:
    """Return status and text of a refusal."""
    with pytest.raises(InferenceServerException) as caught:
        call()
    return caught.value.status(), caught.value.message()


def test_both_models_of_a_bundle_are_served(
    site: Site, ask: Callable[[Agent], triton.InferenceServerClient]
) -> None:
    with running_agent(site.config()) as agent:
        client = ask(agent)
        np.testing.assert_array_equal(answer(client), expected(2.0))
        np.testing.assert_array_equal(answer(client, "other"), expected(-1.0))
        assert states(client) == {"affine": "READY", "other": "READY"}
        assert len(client.get_inference_statistics()["model_stats"]) == 2


def test_under_load_a_reload_fails_no_request_and_ends_with_the_new_model_alone(
    site: Site, ask: Callable[[Agent], triton.InferenceServerClient]
) -> None:
    old, new, stop = expected(2.0), expected(3.0), threading.Event()

    def keep_asking(client: triton.InferenceServerClient) -> list[str]:
        seen = []
        while not stop.is_set():
            got = answer(client)
            seen.append("old" if np.array_equal(got, old) else "new")
            assert np.array_equal(got, old) or np.array_equal(got, new)
        return seen

    with running_agent(site.config()) as agent, ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(keep_asking, ask(agent)) for _ in range(4)]
        try:
            client = ask(agent)
            for scale in (3.0, 2.0, 3.0):
                site.put(affine_parts(scale=scale))
                client.load_model("affine")
                np.testing.assert_array_equal(answer(client), expected(scale))
        finally:
            stop.set()
        seen = [future.result(DEADLINE_S) for future in asking]
        assert {"old", "new"} <= {kind for kinds in seen for kind in kinds}
        (stats,) = client.get_inference_statistics("affine")["model_stats"]
        assert stats["inference_stats"]["fail"]["count"] == 0
        assert stats["inference_count"] == sum(map(len, seen)) + 3  # it counts on over reloads
        model = httpx.get(f"{agent.url}/telemetry").json()["models"][0]
        assert (model["requests"], len(model["workers"])) == ({"ok": sum(map(len, seen)) + 3}, 1)


def test_an_unload_answers_the_requests_inside_and_leaves_the_others(
    site: Site, ask: Callable[[Agent], triton.InferenceServerClient]
) -> None:
    gate = Gate(holds=False)
    session = FakeSession(before_run=gate)
    site.put(joined_parts(affine_parts(), affine_parts(name="other")))
    with (
        running_agent(site.config(), open_session=lambda *_: session) as agent,
        ThreadPoolExecutor(2) as pool,
    ):
        client = ask(agent)
        gate.hold()
        inside = pool.submit(answer, ask(agent))
        gate.wait_entered()
        gate.pass_others()
        unloading = pool.submit(ask(agent).unload_model, "affine")
        while states(client)["affine"] == "READY":
            pass
        status, text = refused(lambda: answer(client))
        assert (status, "last requests" in text) == ("503", True)
        assert not unloading.done()
        gate.open()
        np.testing.assert_array_equal(inside.result(DEADLINE_S), expected(2.0))
        unloading.result(DEADLINE_S)
        assert states(client) == {"other": "READY", "affine": "UNAVAILABLE"}
        assert (
            "/v2/repository/models/affine/load brings it back" in refused(lambda: answer(client))[1]
        )
        assert client.is_server_ready()  # nobody wants it now
        assert not client.is_model_ready("affine")
        client.unload_model("affine")  # twice is once


def test_what_was_unloaded_can_be_loaded_again(
    site: Site, ask: Callable[[Agent], triton.InferenceServerClient]
) -> None:
    with running_agent(site.config()) as agent:
        client = ask(agent)
        client.unload_model("other")
        client.load_model("other")
        np.testing.assert_array_equal(answer(client, "other"), expected(-1.0))


def wrong_golden() -> tuple[Manifest, dict[str, bytes]]:
    """A bundle whose graph does not compute what its golden set says."""
    manifest, files = affine_parts(scale=5.0)
    good = affine_parts()[1]
    graphs = {name: good[name] for name in good if name.endswith(".onnx")}
    return manifest, {**files, **graphs}


def altered(site: Site) -> None:
    """Flip one byte of a blob that is in use."""
    blob = next(
        path for path in sorted((site.root / "blobs/sha256").iterdir()) if path.stat().st_size > 100
    )
    content = bytearray(blob.read_bytes())
    content[50] ^= 1
    blob.unlink()  # the agent may have mapped it
    blob.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda site: site.put(wrong_golden()), "off by"),
        (altered, "does not match its digest"),
        (lambda site: site.put(OTHER), "the bundle on disk has 'other'"),
        (lambda site: shutil.rmtree(site.root), "no bundle at"),
    ],
)
def test_a_reload_that_fails_leaves_the_old_model_in_service(
    site: Site,
    ask: Callable[[Agent], triton.InferenceServerClient],
    spoil: Callable[[Site], None],
    problem: str,
) -> None:
    with running_agent(site.config()) as agent:
        client = ask(agent)
        spoil(site)
        status, text = refused(lambda: client.load_model("affine"))
        assert status in {"404", "409"}
        assert problem in text
        np.testing.assert_array_equal(answer(client), expected(2.0))
        assert client.is_server_ready()


class OneCopy(Admission):
    """Memory in which one copy of affine finds room."""

    agent: Agent | None = None

    def problem(self, manifest: Manifest, candidate: Candidate) -> str | None:
        is_open = self.agent is not None and "affine" in self.agent.serving.served
        return "one copy fits, and one is open" if is_open else None


def test_with_memory_for_one_copy_a_reload_drains_first_and_says_so(
    site: Site,
    ask: Callable[[Agent], triton.InferenceServerClient],
    caplog: pytest.LogCaptureFixture,
) -> None:
    admission = OneCopy(Target(kind="cpu", arch="x", name="x"), reserve_bytes=0)
    site.put(affine_parts())
    with running_agent(site.config(), admission=lambda _: admission) as agent:
        client, admission.agent = ask(agent), agent
        site.put(affine_parts(scale=3.0))
        client.load_model("affine")
        np.testing.assert_array_equal(answer(client), expected(3.0))
        assert "draining before the reload name=affine" in caplog.text
        site.put(wrong_golden())
        assert "off by" in refused(lambda: client.load_model("affine"))[1]
        # The old files are gone as well, so that nothing is left to serve.
        assert refused(lambda: answer(client))[0] == "503"
        assert not client.is_server_ready()


def test_after_a_drained_reload_that_fails_the_old_copy_comes_back(
    site: Site, ask: Callable[[Agent], triton.InferenceServerClient], tmp_path: Path
) -> None:
    admission = OneCopy(Target(kind="cpu", arch="x", name="x"), reserve_bytes=0)
    first = write_bundle(tmp_path / "slot-a", *affine_parts(), site.key)
    second = write_bundle(tmp_path / "slot-b", *wrong_golden(), site.key)
    place = tmp_path / "current"
    place.symlink_to(first)
    config = site.config(bundle=place)
    with running_agent(config, admission=lambda _: admission) as agent:
        client, admission.agent = ask(agent), agent
        place.unlink()
        place.symlink_to(second)
        assert "off by" in refused(lambda: client.load_model("affine"))[1]
        place.unlink()
        place.symlink_to(first)
        client.load_model("affine")
        np.testing.assert_array_equal(answer(client), expected(2.0))


def test_a_model_that_cannot_be_opened_does_not_keep_the_others_from_serving(
    site: Site, ask: Callable[[Agent], triton.InferenceServerClient]
) -> None:
    site.put(joined_parts(wrong_golden(), OTHER))
    with running_agent(site.config()) as agent:
        client = ask(agent)
        np.testing.assert_array_equal(answer(client, "other"), expected(-1.0))
        assert client.is_model_ready("other")
        assert not client.is_server_ready()
        reasons = {e["name"]: e["reason"] for e in client.get_model_repository_index()}
        assert "could not be opened" in reasons["affine"]
        assert "off by" in httpx.get(f"{agent.url}/v2/health/ready").json()["error"]


def test_the_configuration_says_which_models_are_opened_first(
    site: Site, ask: Callable[[Agent], triton.InferenceServerClient]
) -> None:
    with running_agent(site.config(models="other")) as agent:
        client = ask(agent)
        assert client.is_server_ready()
        assert states(client) == {"other": "READY", "affine": "UNAVAILABLE"}
        assert "is not loaded" in refused(lambda: answer(client))[1]
        client.load_model("affine")
        np.testing.assert_array_equal(answer(client), expected(2.0))
    with pytest.raises(ConfigError, match="models: the bundle has no 'third', only affine, other"):
        open_agent(site.config(models="other, third"), notifier=FakeNotifier())


def test_what_a_signed_bundle_cannot_give_is_refused(
    site: Site, ask: Callable[[Agent], triton.InferenceServerClient]
) -> None:
    with running_agent(site.config()) as agent:
        client = ask(agent)
        status, text = refused(lambda: client.load_model("affine", config='{"name": "affine"}'))
        assert (status, "the signed bundle alone" in text) == ("400", True)
        assert refused(lambda: client.load_model("third"))[0] == "404"
        assert refused(lambda: client.unload_model("third"))[0] == "404"
        load = f"{agent.url}/v2/repository/models/affine/load"
        assert httpx.post(load, content=b"[]").status_code == 400
        assert httpx.get(load).status_code == 405


def test_changes_that_wait_are_bounded_so_that_health_still_answers(site: Site) -> None:
    gate = Gate(holds=False)

    def open_session(*_: object) -> FakeSession:
        gate()
        return FakeSession()

    site.put(affine_parts())
    with (
        running_agent(site.config(), open_session=open_session) as agent,
        ThreadPoolExecutor(8) as pool,
    ):
        load = f"{agent.url}/v2/repository/models/affine/load"
        gate.hold()
        loads = [pool.submit(httpx.post, load, timeout=DEADLINE_S) for _ in range(8)]
        gate.wait_entered()
        assert httpx.get(f"{agent.url}/v2/health/ready").status_code == 200
        gate.open()
        statuses = sorted(future.result(DEADLINE_S).status_code for future in loads)
        assert statuses[:1] == [200]
        assert set(statuses) == {200, 429}


def test_a_stop_answers_the_loads_that_run_and_wait(site: Site) -> None:
    gate = Gate(holds=False)

    def open_session(*_: object) -> FakeSession:
        gate()
        return FakeSession()

    site.put(affine_parts())
    with ThreadPoolExecutor(3) as pool:
        with running_agent(site.config(), open_session=open_session) as agent:
            gate.hold()
            load = f"{agent.url}/v2/repository/models/affine/load"
            loads = [pool.submit(httpx.post, load, timeout=DEADLINE_S) for _ in range(3)]
            gate.wait_entered()
            done, waiting = wait(loads, DEADLINE_S, return_when=FIRST_COMPLETED)
            assert [future.result().status_code for future in done] == [429]  # two are inside
            agent.request_stop()
            gate.open()
        statuses = {future.result(DEADLINE_S).status_code for future in waiting}
        assert 503 in statuses
        assert statuses <= {200, 503}


def test_every_candidate_that_lacks_memory_is_refused_with_its_numbers(site: Site) -> None:
    def admission(target: Target) -> Admission:
        return Admission(target, reserve_bytes=1 << 30, host=lambda: 1 << 20)

    config = replace(site.config(), models="affine")
    agent = open_agent(config, notifier=FakeNotifier(), admission=admission)
    with pytest.raises(EdgeError, match="1074 MB are kept free, but only 1 MB of the machine"):
        agent.run()
