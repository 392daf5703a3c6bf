"""Answers on the page: as they come, as markup, and cut anywhere."""

from __future__ import annotations

import json

import pytest

from tests.browser import Browser
from tests.chat_page.stub import ANSWER, IS_DONE, TEXT, Agent, answered, ask

pytestmark = pytest.mark.slow


def test_words_show_as_they_come_and_the_next_question_brings_all_before(
    page: Browser, agent: Agent
) -> None:
    assert ask(page, agent, "First?") == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "First?"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    page.wait_for(f"{ANSWER}.querySelector('.pause') !== null")
    agent.say("", "It ", "comes")
    page.wait_for(f"{TEXT} === 'It comes'")
    assert not page.evaluate(IS_DONE)
    agent.say(" bit by bit.")
    agent.end(tokens=41)
    page.wait_for(IS_DONE)
    assert page.evaluate(TEXT) == "It comes bit by bit."
    assert "41 tokens" in page.evaluate(f"{ANSWER}.querySelector('.facts').innerText")
    second = ask(page, agent, "Second?")
    assert second["messages"] == [
        {"role": "user", "content": "First?"},
        {"role": "assistant", "content": "It comes bit by bit."},
        {"role": "user", "content": "Second?"},
    ]
    answered(page, agent, "Yes.")


def test_characters_and_events_may_be_cut_anywhere(page: Browser, agent: Agent) -> None:
    ask(page, agent, "Cut?")
    choice = {"choices": [{"delta": {"content": "Grüße 🌍\u2028!"}, "finish_reason": None}]}
    content = f": a comment\r\n\r\ndata: {json.dumps(choice, ensure_ascii=False)}\r\n\r\n".encode()
    for byte in content:
        agent.loop.call(agent.loop.events.call_soon, agent.streams[-1].send, bytes([byte]))
    page.wait_for(f"{TEXT}?.startsWith('Grüße 🌍')")
    agent.end()
    page.wait_for(IS_DONE)


def test_what_a_model_writes_is_never_markup(page: Browser, agent: Agent) -> None:
    hostile = (
        "<img src=x onerror=alert(1)><script>alert(2)</script>\n\n"
        "[a](javascript:alert(3)) [b](data:text/html,x) `<b>` **<i>**\n\n"
        "```html\n</code></pre><svg onload=alert(4)>\n```\n\n| <u> | b |\n|---|---|\n| <s> | d |\n"
    )
    ask(page, agent, "<b>mine</b>")
    answered(page, agent, hostile)
    tags = page.evaluate("[...new Set([...document.querySelectorAll('#talk *')]"
                         ".map((one) => one.localName))]")  # fmt: skip
    assert not set(tags) & {"img", "script", "svg", "a", "b", "i", "u", "s"}
    assert page.evaluate("document.querySelector('.asked').innerText") == "<b>mine</b>"
    text = page.evaluate(TEXT)
    for part in ("<img src=x onerror=alert(1)>", "[a](javascript:alert(3))", "</code></pre>"):
        assert part in text


MARKDOWN = """# Head

One **bold**, *slanted*, `code * here` and 2 * 3 * 4.
Second line; [a link](https://example.org/x?a=1).

3. three
4. four
   - inner
     more

   ```sh
   ls
   ```
5. five

> quoted

---

| a | b |
|---|--:|
| 1 | **2** |

```python
def f():
    return "**not bold**"
```
"""


RENDERED = (
    "<h2>Head</h2>"
    "<p>One <strong>bold</strong>, <em>slanted</em>, <code>code * here</code> and 2 * 3 * 4.\n"
    'Second line; <a href="https://example.org/x?a=1" target="_blank" rel="noopener noreferrer">'
    "a link</a>.</p>"
    '<ol start="3"><li><p>three</p></li><li><p>four</p><ul><li><p>inner\nmore</p></li></ul>'
    "<figure><figcaption><span>sh</span><button>Copy</button></figcaption>"
    "<pre><code>ls</code></pre></figure></li><li><p>five</p></li></ol>"
    "<blockquote><p>quoted</p></blockquote><hr>"
    "<div><table><thead><tr><th>a</th><th>b</th></tr></thead>"
    "<tbody><tr><td>1</td><td><strong>2</strong></td></tr></tbody></table></div>"
    "<figure><figcaption><span>python</span><button>Copy</button></figcaption>"
    '<pre><code>def f():\n    return "**not bold**"</code></pre></figure>'
)


STRIPPED = rf"{ANSWER}.querySelector('.text').innerHTML.replace(/ (class|type)=\"\w+\"/g, '')"


@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_markdown_looks_the_same_however_it_comes(page: Browser, agent: Agent, step: int) -> None:
    ask(page, agent, "Show me.")
    for at in range(0, len(MARKDOWN), step):
        agent.say(MARKDOWN[at : at + step])
    agent.end()
    page.wait_for(IS_DONE)
    assert page.evaluate(STRIPPED) == RENDERED


def test_a_mark_that_has_not_closed_yet_works_already_and_stays_a_mark_if_it_never_does(
    page: Browser, agent: Agent
) -> None:
    ask(page, agent, "Bold?")
    agent.say("So **bold and")
    page.wait_for(f"{STRIPPED} === '<p>So <strong>bold and</strong></p>'")
    agent.end()
    page.wait_for(IS_DONE)
    assert page.evaluate(STRIPPED) == "<p>So **bold and</p>"


@pytest.mark.parametrize(
    "piece", ["*", "`", "**a", "[", "> ", "- ", "|", "```\n", "_", "\\", "\n", " ", "1. ", "#"]
)
def test_no_text_makes_the_page_hang(page: Browser, agent: Agent, piece: str) -> None:
    ask(page, agent, "Fill.")
    for _ in range(20):
        agent.say(piece * 1000)
    agent.say("\n\nthe end")
    agent.end()
    page.wait_for(IS_DONE)


def test_thinking_is_folded_away_and_not_sent_back(page: Browser, agent: Agent) -> None:
    ask(page, agent, "Think.")
    agent.say("Let me", " see.", kind="reasoning_content")
    page.wait_for("document.querySelector('.thought summary')?.innerText === 'Thinking…'")
    thought = "document.querySelector('.thought')"
    assert page.evaluate(f"{thought}.open") is False
    answered(page, agent, "42.")
    assert page.evaluate(f"{thought}.querySelector('summary').innerText").startswith("Thought for")
    page.click(".thought summary")
    assert page.evaluate(f"{thought}.innerText").endswith("Let me see.")
    messages = ask(page, agent, "Sure?")["messages"]
    assert messages[1] == {"role": "assistant", "content": "42."}
    answered(page, agent, "Yes.")
