import json
import logging
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest

from edge.agent import Agent
from edge.bundle import MANIFEST_NAME, SIGNATURE_NAME
from edge.config import AgentConfig
from edge.errors import (
    BundleError,
    ConfigError,
    EdgeError,
    InferenceError,
    ModelError,
    SelfTestError,
    TrustError,
)
from edge.session import Session
from tests.agents import make_config, open_agent, running_agent
from tests.bundles import affine_parts, write_bundle
from tests.fakes import DEADLINE_S, FakeNotifier, FakeSession, Gate
from tests.models import affine, affine_model

BODY = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    return make_config(tmp_path)


def never_open(*_: object) -> Session:
    raise AssertionError("a model was opened")


def start_and_fail(config: AgentConfig, **options: object) -> EdgeError:
    """Run an agent that cannot serve and return the error."""
    with pytest.raises(EdgeError) as caught:
        open_agent(config, notifier=FakeNotifier(), **options).run()
    return caught.value


def test_a_signed_bundle_is_served_with_right_answers(config: AgentConfig) -> None:
    with running_agent(config) as agent, httpx.Client(base_url=agent.url) as client:
        assert client.get("/v2/health/ready").json() == {"ready": True}
        outputs = client.post("/v2/models/affine/infer", json=BODY).json()["outputs"]
        expected = affine(np.array([[1, 2, 3, 4]], np.float32))
        assert {o["name"]: o["data"] for o in outputs} == {
            name: array.ravel().tolist() for name, array in expected.items()
        }


def test_telemetry_and_metrics_describe_what_is_served(config: AgentConfig) -> None:
    with running_agent(config) as agent, httpx.Client(base_url=agent.url) as client:
        client.post("/v2/models/affine/infer", json=BODY)
        report = client.get("/telemetry").json()
        metrics = client.get("/metrics").text
    model = report["models"][0]
    assert (model["variant"], model["means"]) == ("int8", "ort-cpu")
    assert model["why"].endswith("p50 1.0 ms against 2.0")
    assert (model["degradation"], report["target"]["onnxruntime"] is None) == (None, False)
    assert [(r["variant"], r["code"]) for r in model["refused"]] == [("fp32", "not-preferred")]
    assert model["requests"] == {"ok": 1}  # the self-test is not a request
    assert model["self_test"]["relative_error"] <= model["self_test"]["tolerance"]
    assert report["bundle"]["signed_by"]["name"].endswith("test.pub")
    assert report["allow_unsigned"] is False
    assert report["machine"]["rss_bytes"] > 1 << 20
    assert 'edge_bundle_info{backend="ort",bundle="affine-bundle"' in metrics
    assert "edge_process_resident_memory_bytes" in metrics


def test_answers_that_no_model_gave_are_counted_by_status(tmp_path: Path) -> None:
    config = make_config(tmp_path, max_body_bytes=1024)
    with running_agent(config) as agent, httpx.Client(base_url=agent.url) as client:
        url = "/v2/models/affine/infer"
        assert client.post(url, content=bytes(config.max_body_bytes + 1)).status_code == 413
        assert client.get("/nowhere").status_code == 404
        assert client.get(url).status_code == 405
        assert client.get("/v2/models/other").status_code == 404
        metrics = client.get("/metrics").text
    for status, count in ((404, 2), (405, 1), (413, 1)):
        assert f'edge_http_responses_total{{status="{status}"}} {count}.0' in metrics
    assert "nowhere" not in metrics
    assert "other" not in metrics


def test_the_agent_is_live_but_not_ready_while_a_model_opens(config: AgentConfig) -> None:
    gate, notifier = Gate(), FakeNotifier()

    def open_session(*_: object) -> Session:
        gate()
        return FakeSession()

    with (
        running_agent(
            config, open_session=open_session, notifier=notifier, until_ready=False
        ) as agent,
        httpx.Client(base_url=agent.url) as client,
    ):
        gate.wait_entered()
        assert client.get("/v2/health/live").status_code == 200
        assert client.get("/v2/health/ready").status_code == 503
        assert client.post("/v2/models/affine/infer", json=BODY).status_code == 503
        assert "ready" not in notifier.messages
        gate.open()
        assert notifier.is_ready.wait(DEADLINE_S)
        assert client.get("/v2/health/ready").status_code == 200


def test_an_altered_blob_is_named_and_no_model_is_opened(config: AgentConfig) -> None:
    blob = next((config.bundle / "blobs" / "sha256").iterdir())
    content = bytearray(blob.read_bytes())
    content[0] ^= 1
    blob.write_bytes(content)
    error = start_and_fail(config, open_session=never_open)
    assert isinstance(error, BundleError)
    assert blob.name in str(error)
    assert error.exit_code == 1


def test_an_altered_manifest_is_refused_even_if_unsigned_ones_are_allowed(
    config: AgentConfig,
) -> None:
    path = config.bundle / MANIFEST_NAME
    path.write_bytes(path.read_bytes().replace(b"2026.1", b"2026.2"))
    error = start_and_fail(replace(config, allow_unsigned=True), open_session=never_open)
    assert isinstance(error, TrustError)
    assert MANIFEST_NAME in str(error)


def test_an_unsigned_bundle_needs_the_flag_which_shows_in_log_and_telemetry(
    config: AgentConfig, caplog: pytest.LogCaptureFixture
) -> None:
    (config.bundle / SIGNATURE_NAME).unlink()
    error = start_and_fail(config, open_session=never_open)
    assert isinstance(error, TrustError)
    assert SIGNATURE_NAME in str(error)
    with (
        caplog.at_level(logging.WARNING),
        running_agent(replace(config, allow_unsigned=True)) as agent,
    ):
        report = httpx.get(f"{agent.url}/telemetry").json()
    assert report["allow_unsigned"] is True
    assert report["bundle"]["signed_by"] == "unsigned"
    assert any("--allow-unsigned" in r.getMessage() for r in caplog.records)


def rewrite(config: AgentConfig, graphs: dict[str, bytes]) -> AgentConfig:
    """Replace the graphs of the bundle; unsigned, for brevity."""
    manifest, files = affine_parts(graphs)
    root = write_bundle(config.bundle.parent / "other", manifest, files, None)
    return replace(config, bundle=root, allow_unsigned=True)


WRONG = affine_model(scale=3.0).SerializeToString()


def test_a_variant_that_fails_its_self_test_is_replaced_by_the_next(config: AgentConfig) -> None:
    with running_agent(rewrite(config, {"int8": WRONG})) as agent:
        model = httpx.get(f"{agent.url}/telemetry").json()["models"][0]
        answer = httpx.post(f"{agent.url}/v2/models/affine/infer", json=BODY).json()
    assert model["variant"] == "fp32"
    assert [(r["variant"], r["code"]) for r in model["refused"]] == [("int8", "self-test-failed")]
    assert "off by" in model["refused"][0]["reason"]
    assert answer["outputs"][0]["data"] == [3, 5, 7, 9]


def test_a_variant_that_does_not_open_is_replaced_by_the_next(config: AgentConfig) -> None:
    with running_agent(rewrite(config, {"int8": b"no graph"})) as agent:
        model = httpx.get(f"{agent.url}/telemetry").json()["models"][0]
    assert model["variant"] == "fp32"
    assert [(r["variant"], r["code"]) for r in model["refused"]] == [("int8", "open-failed")]


def test_a_backend_that_fails_in_the_self_test_is_refused(config: AgentConfig) -> None:
    def broken() -> None:
        raise InferenceError("device lost")

    sessions: Iterator[Session] = iter([FakeSession(before_run=broken), FakeSession()])
    with running_agent(config, open_session=lambda *_: next(sessions)) as agent:
        model = httpx.get(f"{agent.url}/telemetry").json()["models"][0]
    assert model["refused"][0]["code"] == "self-test-failed"


def test_no_passing_variant_ends_the_agent_with_every_reason(config: AgentConfig) -> None:
    error = start_and_fail(rewrite(config, {"int8": WRONG, "fp32": WRONG}))
    assert isinstance(error, SelfTestError)
    assert error.exit_code == 1
    assert "int8: " in str(error)
    assert "fp32: " in str(error)


def test_a_forced_variant_is_served_or_nothing(config: AgentConfig) -> None:
    with running_agent(replace(config, variant="fp32")) as agent:
        model = httpx.get(f"{agent.url}/telemetry").json()["models"][0]
    assert model["variant"] == "fp32"
    assert model["refused"][0]["code"] == "not-forced"
    error = start_and_fail(replace(rewrite(config, {"int8": WRONG}), variant="int8"))
    assert isinstance(error, SelfTestError)
    assert isinstance(start_and_fail(replace(config, variant="int4")), ConfigError)


def test_a_refused_session_is_closed(config: AgentConfig) -> None:
    wrong = FakeSession(compute=lambda x: affine(x + 1))
    sessions: Iterator[Session] = iter([wrong, FakeSession()])
    with running_agent(config, open_session=lambda *_: next(sessions)):
        assert wrong.is_closed


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_while_opening_ends_the_agent(config: AgentConfig) -> None:
    error = start_and_fail(config, open_session=lambda *_: 1 / 0)
    assert "traceback" in str(error)


def test_a_port_in_use_is_one_clear_error(config: AgentConfig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"{port}.*--port"):
            Agent.open(replace(config, port=port), notifier=FakeNotifier())


def test_systemd_hears_ready_then_pings_then_stopping(config: AgentConfig) -> None:
    notifier = FakeNotifier(watchdog_interval_s=0.01)
    with running_agent(config, notifier=notifier) as agent:
        while "watchdog" not in notifier.messages[notifier.messages.index("ready") :]:
            httpx.get(f"{agent.url}/v2/health/live")
    assert notifier.messages[-1] == "stopping"
    assert any(m.startswith("status serving affine on http://") for m in notifier.messages)


def test_a_stalled_run_stops_the_watchdog_pings(config: AgentConfig) -> None:
    gate, notifier = Gate(), FakeNotifier(watchdog_interval_s=0.001)
    is_testing = True

    def block() -> None:
        if not is_testing:
            gate()

    with running_agent(
        replace(config, stall_timeout_s=0.0),
        open_session=lambda *_: FakeSession(before_run=block),
        notifier=notifier,
    ) as agent:
        is_testing = False
        with httpx.Client(base_url=agent.url) as client, ThreadPoolExecutor(1) as pool:
            asked = pool.submit(
                httpx.post, f"{agent.url}/v2/models/affine/infer", json=BODY, timeout=DEADLINE_S
            )
            gate.wait_entered()
            # Each answer is a turn of the main loop; the first may have begun before the stall.
            client.get("/v2/health/live")
            client.get("/v2/health/live")
            before = notifier.messages.count("watchdog")
            for _ in range(20):
                assert client.get("/v2/health/live").status_code == 200
            assert notifier.messages.count("watchdog") == before
            gate.open()
            assert asked.result(DEADLINE_S).status_code == 200


SERVE = """
    import logging, sys
    import edge.agent, edge.preparing, edge.serve, tests.fakes
    from pathlib import Path
    from edge.config import AgentConfig

    logging.basicConfig(level="INFO", stream=sys.stderr, format="%(message)s")
    runs = 0

    def before_run():
        global runs
        runs += 1
        if runs == 2:  # the first is the self-test
            print("running", flush=True)
            assert sys.stdin.readline() == "go on\\n"

    def prepare(*_):
        return edge.preparing.Prepared(
            open=lambda device: tests.fakes.FakeSession(before_run=before_run)
        )

    edge.preparing.Preparer.prepare = prepare
    config = AgentConfig(
        bundle=Path(sys.argv[1]), trusted_keys=Path(sys.argv[2]), port=0, warm_up=False
    )
    sys.exit(edge.serve.serve(config))
"""


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_lets_the_request_in_flight_finish_and_exits_0(
    config: AgentConfig, kind: signal.Signals
) -> None:
    command = [sys.executable, "-c", textwrap.dedent(SERVE)]
    with subprocess.Popen(
        [*command, str(config.bundle), str(config.trusted_keys)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            lines = iter(process.stderr.readline, "")
            url = next(line.split()[-1] for line in lines if line.startswith("listening on"))
            next(line for line in lines if line.startswith("ready "))
            port = int(url.rsplit(":", 1)[1])
            body = json.dumps(BODY).encode()
            with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as connection:
                connection.sendall(
                    b"POST /v2/models/affine/infer HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s"
                    % (len(body), body)
                )
                assert process.stdout.readline() == "running\n"
                process.send_signal(kind)
                next(line for line in lines if line.startswith("stopping"))
                process.stdin.write("go on\n")
                process.stdin.flush()
                answer = b""
                while chunk := connection.recv(65536):
                    answer += chunk
            head, _, content = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK")
            assert json.loads(content)["outputs"][0]["data"] == [3, 5, 7, 9]
            assert process.wait(DEADLINE_S) == 0
            assert list(lines)[-1] == "stopped\n"
        finally:
            process.kill()


VERIFY = """
    import signal, sys
    import edge.agent
    import edge.serve
    from edge.config import AgentConfig

    def verify(*_, **__):
        print("verifying", flush=True)
        signal.pause()

    edge.agent.open_configured = verify
    sys.exit(edge.serve.serve(AgentConfig(port=0)))
"""


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_during_verification_exits_0(kind: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(VERIFY)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "verifying\n"
        process.send_signal(kind)
        assert process.wait(DEADLINE_S) == 0
        assert process.stderr.read() == ""


def test_an_opening_error_of_the_real_backend_is_a_model_error(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    error = start_and_fail(
        replace(rewrite(config, {"int8": b"", "fp32": b""}), variant=None),
    )
    assert isinstance(error, ModelError)
    assert "ONNX Runtime cannot open" in str(error)
