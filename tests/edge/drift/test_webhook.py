from __future__ import annotations

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import msgspec
import pytest

from edge.drift.watch import DriftReport
from edge.drift.webhook import Webhook
from edge.errors import ConfigError
from tests.fakes import wait_until

REPORT = DriftReport(
    state="drifted",
    since_s=1.0,
    detail="the last 200 rows differ from the reference in brightness (0.5)",
    window_rows=200,
    rows=0,
    compared_rows=200,
    windows=1,
    skipped=0,
    level=0.001,
    largest={"input": 0.5},
    features=(),
)


@contextlib.contextmanager
def told(statuses):
    """Yield the address of a server that answers with these in turn, and the bodies it got."""
    bodies = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self):
            bodies.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(statuses[min(len(bodies), len(statuses)) - 1])
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Hook)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook", bodies
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def running(url, **options):
    webhook = Webhook(url, **options)
    webhook.start()
    try:
        yield webhook
    finally:
        webhook.stop()


def test_a_change_is_told_as_json():
    with told([204]) as (url, bodies), running(url) as webhook:
        webhook.tell("digits", REPORT)
        wait_until(lambda: bodies)
        path, body = bodies[0]
        document = msgspec.json.decode(body)
        assert path == "/hook"
        assert document["model"] == "digits"
        assert document["drift"]["state"] == "drifted"


def test_what_is_not_taken_is_sent_again_and_redirects_are_not_followed():
    with told([500, 302, 200]) as (url, bodies), running(url, retry_s=(0.0, 0.0)) as webhook:
        webhook.tell("digits", REPORT)
        webhook.tell("other", REPORT)
        wait_until(lambda: len(bodies) == 4)
        assert [path for path, _ in bodies] == ["/hook"] * 4
        assert [msgspec.json.decode(body)["model"] for _, body in bodies] == [
            *["digits"] * 3,
            "other",
        ]


def test_an_address_that_is_none_is_refused_at_the_start():
    with pytest.raises(ConfigError, match="drift_webhook"):
        Webhook("ftp://example.org/x")
