"""What the device script asks of its machine, and what the desk makes of odd answers."""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from host_tools.flash.device.machine import CONFIG, Machine
from host_tools.flash.flash import flash
from host_tools.flash.ssh import DeviceError
from tests.agents import unused_port
from tests.fakes import DEADLINE_S
from tests.host_tools.flash.payloads import small_payload


def test_a_program_that_fills_one_pipe_and_then_talks_is_heard(tmp_path: Path) -> None:
    said: list[str] = []
    code = "import sys; sys.stdout.write('x' * 1_000_000); sys.stderr.write('done\\n')"
    answers: list[Any] = []
    machine = Machine(tmp_path, said.append)
    thread = threading.Thread(
        target=lambda: answers.append(machine.run([sys.executable, "-c", code], heard=True)),
        daemon=True,
    )
    thread.start()
    thread.join(DEADLINE_S)
    (answer,) = answers
    assert (answer.status, len(answer.text), answer.last_line) == (0, 1_000_000, "done")
    assert said == ["done"]


@pytest.mark.parametrize(("host", "asked"), [("127.0.0.2", "127.0.0.2"), ("0.0.0.0", "127.0.0.1")])
def test_the_agent_is_looked_for_where_it_listens_and_through_no_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, asked: str
) -> None:
    class Ready(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{unused_port()}")
    with ThreadingHTTPServer((asked, 0), Ready) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        config = tmp_path / CONFIG
        config.parent.mkdir(parents=True)
        config.write_text(json.dumps({"host": host, "port": server.server_address[1]}))
        assert Machine(tmp_path, lambda line: None).is_ready()
        server.shutdown()


def test_a_device_that_cannot_look_at_itself_is_an_error_that_says_so(tmp_path: Path) -> None:
    class Blind:
        host = "device"

        def run(self, *words: str, **_: object) -> dict[str, Any]:
            assert words[0] == "facts"
            return {"state": "failed", "reason": "payload.json: permission denied"}

    with pytest.raises(DeviceError, match=r"device: payload\.json: permission denied"):
        flash(Blind(), small_payload(tmp_path))  # type: ignore[arg-type]
