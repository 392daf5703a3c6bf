"""sd_notify against a real datagram socket, as systemd would hold it."""

import logging
import os
import socket

import pytest

from edge.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """A bound socket and the NOTIFY_SOCKET value that leads to it."""
    text = f"@edge-test-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0" + text[1:] if text[0] == "@" else text)
        receiver.settimeout(5)
        yield receiver, {"NOTIFY_SOCKET": text}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda n: n.ready(), b"READY=1"),
        (lambda n: n.stopping(), b"STOPPING=1"),
        (lambda n: n.watchdog(), b"WATCHDOG=1"),
        (lambda n: n.status("self-test\nREADY=1"), b"STATUS=self-test READY=1"),
    ],
)
def test_each_change_is_one_datagram(manager, call, message):
    receiver, environ = manager
    call(Notifier.from_environ(environ))
    assert receiver.recv(4096) == message


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}])
def test_without_a_manager_nothing_happens(environ, caplog):
    notifier = Notifier.from_environ(environ)
    notifier.ready()
    notifier.status("text")
    assert caplog.records == []


def test_a_manager_that_is_gone_is_logged_once_per_change(tmp_path, caplog):
    path = tmp_path / "notify"
    notifier = Notifier.from_environ({"NOTIFY_SOCKET": str(path)})
    with caplog.at_level(logging.WARNING):
        notifier.watchdog()
        notifier.watchdog()
        assert len(caplog.records) == 1
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
            receiver.bind(str(path))
            notifier.watchdog()
            assert receiver.recv(4096) == b"WATCHDOG=1"
        notifier.watchdog()
    assert len(caplog.records) == 2


@pytest.mark.parametrize(
    ("environ", "interval_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "42"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "43"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_asked_for_half_its_period_and_this_process_only(environ, interval_s):
    assert Notifier.from_environ(environ, pid=42).watchdog_interval_s == interval_s
