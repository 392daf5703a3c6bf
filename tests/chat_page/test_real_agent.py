"""The page against a whole agent: only the decoder is a fake, whose answers are known."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from edge.agent import Agent
from tests.agents import make_config, running_agent
from tests.browser import Browser
from tests.chat_page.stub import ANSWER, IS_DONE, TEXT
from tests.edge.chat.bundles import NAME, chat_parts, fake_opener
from tests.edge.test_chat_calls import HELLO, expected_text
from tests.fakes import DEADLINE_S, Gate, wait_until

pytestmark = pytest.mark.slow
# What the fake says may be so long that there is no room for a second turn.
BRIEF = """
((real) => {
  window.fetch = (url, init) => real(url, !init?.body ? init :
    {...init, body: JSON.stringify({...JSON.parse(init.body), max_tokens: 20})});
})(window.fetch)
"""
COUNT = "document.querySelectorAll('#talk .asked').length"


@pytest.fixture
def gate() -> Gate:
    return Gate(holds=False)


@pytest.fixture
def whole(tmp_path: Path, gate: Gate) -> Iterator[Agent]:
    """An agent with one lane, and room for one in line."""
    config = make_config(tmp_path, chat_parts(), chat_lanes=1, queue_size=2)
    with running_agent(config, open_decoder=fake_opener(before_step=gate)) as agent:
        yield agent
        gate.open()


def opened(browser: Browser, agent: Agent) -> Browser:
    browser.look(390, 844)
    browser.problems.clear()
    browser.open(f"{agent.url}/chat")
    browser.wait_for("document.querySelector('#model').classList.contains('is-here')")
    return browser


def send(page: Browser, text: str) -> None:
    count = page.evaluate(COUNT)
    page.evaluate("document.querySelector('#input').focus()")
    page.type(text)
    page.press("Enter")
    page.wait_for(f"{COUNT} === {count + 1}")


def test_two_turns_show_what_the_model_says_and_the_second_reuses_the_first(
    browser: Browser, whole: Agent
) -> None:
    page = opened(browser, whole)
    page.evaluate(BRIEF)
    generator = whole.serving.served_chat(NAME).generator
    send(page, "Hello?")
    page.wait_for(IS_DONE)
    first = page.evaluate(TEXT)
    assert first
    assert generator.counters.reused_tokens == 0
    send(page, "And then?")
    page.wait_for(f"{COUNT} === 2 && {IS_DONE}")
    assert page.evaluate(TEXT)
    assert generator.counters.reused_tokens > 0
    assert browser.problems == []


def test_stop_frees_the_lane(browser: Browser, whole: Agent, gate: Gate) -> None:
    page = opened(browser, whole)
    generator = whole.serving.served_chat(NAME).generator
    gate.hold()
    send(page, "Never mind")
    wait_until(lambda: generator.running == 1)
    page.click("#go")
    page.wait_for(f"{ANSWER}.innerText.includes('Stopped')")
    gate.open()
    wait_until(lambda: generator.running == 0)
    assert browser.problems == []


def test_who_waits_behind_others_is_told_so_and_answered_in_turn(
    browser: Browser, whole: Agent, gate: Gate
) -> None:
    page = opened(browser, whole)
    generator = whole.serving.served_chat(NAME).generator
    body = {"model": NAME, "messages": HELLO, "max_tokens": 9, "temperature": 0}
    gate.hold()
    with ThreadPoolExecutor(2) as pool:
        url = f"{whole.url}/v1/chat/completions"
        others = []
        for count in (1, 2):
            others.append(pool.submit(httpx.post, url, json=body, timeout=DEADLINE_S))
            wait_until(lambda count=count: generator.running + generator.waiting == count)
        send(page, "And me?")
        pause = f"{ANSWER}.querySelector('.pause')?.textContent"
        page.wait_for(f"{pause}?.includes('1 before you')")
        gate.open()
        page.wait_for(IS_DONE)
        answers = [other.result().json() for other in others]
    texts = [answer["choices"][0]["message"]["content"] for answer in answers]
    assert texts == [expected_text(HELLO, 9)] * 2
    assert "before you" not in page.evaluate(f"{ANSWER}.innerText")
    assert browser.problems == []
