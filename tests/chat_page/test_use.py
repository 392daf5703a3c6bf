"""How the page is used: keys, screens, screen readers, and the policy of the browser."""

from __future__ import annotations

import pytest

from tests.browser import Browser
from tests.chat_page.stub import IS_DONE, TEXT, Agent, answered, ask
from tests.chat_page.test_answers import MARKDOWN

pytestmark = pytest.mark.slow


def test_shift_and_enter_begins_a_line_and_a_composition_is_not_sent(
    page: Browser, agent: Agent
) -> None:
    page.type("one")
    page.press("Enter", shift=True)
    page.type("two")
    page.call("Input.imeSetComposition", text="ni", selectionStart=2, selectionEnd=2)
    composing = "new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, cancelable: true})"
    assert page.evaluate(f"document.querySelector('#input').dispatchEvent({composing})")
    page.call("Input.insertText", text="你")
    page.press("Enter")
    assert agent.wait_asked(1)["messages"][0]["content"] == "one\ntwo你"
    answered(page, agent, "Yes.")


def test_an_empty_message_is_not_sent(page: Browser, agent: Agent) -> None:
    page.type("  ")
    page.press("Enter")
    assert page.evaluate("document.querySelector('#go').disabled")
    assert page.evaluate("document.querySelector('#welcome').checkVisibility()")


@pytest.mark.parametrize(("width", "height"), [(320, 568), (390, 844), (844, 390), (1280, 800)])
def test_everything_fits_and_can_be_hit(
    page: Browser, agent: Agent, width: int, height: int
) -> None:
    page.look(width, height)
    ask(page, agent, "w" * 200)
    agent.say(MARKDOWN, "x" * 500, "\n\n```\n" + "y" * 500 + "\n```\n")
    agent.end()
    page.wait_for(IS_DONE)
    wide = (
        "[...document.querySelectorAll('body, main, footer, header, #talk > *, form')].filter("
        "(one) => one.getBoundingClientRect().right > innerWidth + 0.5).length"
    )
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("document.querySelector('main').scrollWidth") <= width
    assert page.evaluate(wide) == 0
    size = "parseFloat(getComputedStyle(document.querySelector('{}')).fontSize)"
    for field in ("#input", "#models"):  # below 16 an iPhone zooms in
        assert page.evaluate(size.format(field)) >= 16
    for button in ("#go", "#anew"):
        box = f"document.querySelector('{button}').getBoundingClientRect()"
        assert page.evaluate(f"Math.min({box}.width, {box}.height)") >= 44
    bottom = "document.querySelector('form').getBoundingClientRect().bottom"
    assert page.evaluate(bottom) <= height


def test_the_newest_stays_in_sight_until_the_reader_scrolls_away(
    page: Browser, agent: Agent
) -> None:
    left = "(({scrollHeight, scrollTop, clientHeight}) => scrollHeight - scrollTop - clientHeight)"
    at_end = f"{left}(document.querySelector('main')) < 2"
    ask(page, agent, "Count.")
    agent.say("\n\n".join(map(str, range(60))))
    page.wait_for(f"{TEXT}.endsWith('59') && {at_end}")
    page.evaluate("document.querySelector('main').scrollTop = 0")
    page.wait_for("document.querySelector('#down').checkVisibility()")
    agent.say("\n\nlast")
    page.wait_for(f"{TEXT}.endsWith('last')")
    assert page.evaluate("document.querySelector('main').scrollTop") == 0
    page.click("#down")
    page.wait_for(at_end)
    agent.end()
    page.wait_for(f"{IS_DONE} && {at_end}")


def test_a_screen_reader_hears_every_paragraph_once_it_is_whole(
    page: Browser, agent: Agent
) -> None:
    heard = "[...document.querySelectorAll('[aria-live=polite] > *')].map((p) => p.textContent)"
    ask(page, agent, "Speak.")
    agent.say("One.\n\nTwo is ")
    page.wait_for(f"{heard}.length === 1")
    assert page.evaluate(heard) == ["One."]
    assert page.evaluate("document.querySelector('#talk').ariaBusy") == "true"
    agent.say("longer.")
    agent.end()
    page.wait_for(IS_DONE)
    assert page.evaluate(heard) == ["One.", "Two is longer."]
    assert page.evaluate("document.querySelector('#talk').ariaBusy") == "false"


def test_everything_can_be_reached_with_the_keyboard_and_shows_it(
    page: Browser, agent: Agent
) -> None:
    page.look(1280, 800)
    ask(page, agent, "Keys?")
    agent.say("hm", kind="reasoning_content")
    answered(page, agent, "Yes.\n\n```\ncode\n```\n")
    page.type("more")
    page.evaluate("document.activeElement.blur()")
    seen = {}
    for _ in range(12):
        page.press("Tab")
        name, outline, shadow = page.evaluate(
            "((one) => [one.id || one.className || one.localName,"
            "getComputedStyle(one).outlineStyle, getComputedStyle(one.form ?? one).boxShadow])"
            "(document.activeElement)"
        )
        seen[name] = outline != "none" or shadow != "none"
    for name in ("anew", "summary", "copy", "input", "go"):
        assert seen[name], name


def test_the_policy_holds_in_the_browser(page: Browser) -> None:
    page.evaluate("""(() => {
        const script = document.createElement('script');
        script.textContent = 'window.wasRun = true';
        document.head.append(script);
        const style = document.createElement('style');
        style.textContent = 'body { display: none }';
        document.head.append(style);
    })()""")
    assert page.evaluate("window.wasRun") is None
    assert page.evaluate("getComputedStyle(document.body).display") == "flex"
    assert page.evaluate("fetch('http://127.0.0.2:1/').then(() => 1, () => 0)") == 0
    complaints = " ".join(page.problems)
    for directive in ("script-src", "style-src", "connect-src"):
        assert directive in complaints
    page.problems.clear()
