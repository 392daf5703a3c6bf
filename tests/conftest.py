"""Fixtures of all tests: a clean environment, and no thread left behind."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator, Iterator

import pytest

pytest.register_assert_rewrite(
    "tests.session_contract",
    "tests.fakes",
    "tests.agents",
    "tests.edge.api_clients",
    "tests.edge.chat.generating",
    "tests.edge.running_server",
)

THREAD_EXIT_S = 5.0
# Where CI promises the tools that a test needs, a test that is skipped for want of one fails.
# Taken away, because an agent that a test starts refuses EDGE_ variables it does not know.
MAY_SKIP = os.environ.pop("EDGE_REQUIRE", "") != "all"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not MAY_SKIP:
        report.outcome = "failed"
        report.longrepr = f"skipped although EDGE_REQUIRE=all: {report.longrepr}"
    return report


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No EDGE_* variable and no service manager of the outside reaches a test."""
    for name in os.environ:
        if name.startswith("EDGE_") or name in {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}:
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def no_leaked_threads() -> Iterator[None]:
    """Fail a test that leaves a thread running."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + THREAD_EXIT_S
    for thread in set(threading.enumerate()) - before:
        thread.join(max(0.0, deadline - time.monotonic()))
    leaked = sorted(thread.name for thread in set(threading.enumerate()) - before)
    assert not leaked, f"threads still running: {leaked}"
