"""The page for a chat in a real browser; skipped where there is no Chromium."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edge.chat.page import PAGE_PATH
from tests.browser import Browser, found_browser
from tests.chat_page.stub import Agent


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    made = Agent()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = found_browser()
    if found is None:
        pytest.skip("this machine has no Chromium")
    with Browser(found) as made:
        yield made


@pytest.fixture
def page(browser: Browser, agent: Agent) -> Iterator[Browser]:
    """The page, just opened, on a phone; it must have nothing to complain of at the end."""
    agent.reset()
    browser.look(390, 844)
    browser.open("about:blank")
    browser.problems.clear()
    browser.open(agent.server.url + PAGE_PATH)
    browser.wait_for("document.querySelector('#model').classList.contains('is-here')")
    yield browser
    browser.evaluate("0")
    assert browser.problems == []
