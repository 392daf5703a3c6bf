"""The page for a chat in a real browser, with an agent that says what the test wants.

The agent is this project's HTTP server with a handler of the tests: what is streamed is known, and
when. Skipped where there is no Chromium.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from edge.chat.page import PAGE_PATH, chat_page
from edge.http_answer import HttpAnswer, json_error
from edge.http_handler import Cancel, Reply
from edge.http_request import HttpRequest
from edge.http_server import HttpServer, Loop
from edge.http_stream import HttpStream
from tests.browser import Browser, found_browser
from tests.fakes import wait_until

pytestmark = pytest.mark.slow
SSE = {"Content-Type": "text/event-stream"}
ANSWER = "document.querySelector('#talk > :last-child')"
TEXT = f"{ANSWER}?.querySelector('.text')?.innerText.trim()"
IS_DONE = f"{ANSWER}?.querySelector('.facts') !== null"


class Agent:
    """Answers the page; streams what `say` is given, to the request that came last."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.server = HttpServer.open(
            self, self.loop, host="127.0.0.1", port=0, max_body_bytes=1 << 20
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="agent")
        self._thread.start()
        self.reset()

    def reset(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.streams: list[HttpStream] = []
        self.cancelled: list[HttpStream] = []
        self.refusal: HttpAnswer | None = None
        self.unready = 0  # times that the list of models is refused
        self.models: list[dict[str, Any]] = [{"id": "tiny", "object": "model"}]

    def admit(self, method: str, path: str) -> HttpAnswer | None:
        return None

    def __call__(self, request: HttpRequest, reply: Reply) -> Cancel | None:
        if request.path == PAGE_PATH:
            reply(chat_page())
        elif request.path == "/v1/models" and self.unready:
            self.unready -= 1
            reply(json_error(503, "starting"))
        elif request.path == "/v1/models":
            body = json.dumps({"object": "list", "data": self.models}).encode()
            reply(HttpAnswer(status=200, body=body))
        elif request.path != "/v1/chat/completions":
            reply(json_error(404, "nothing"))
        else:
            self.asked.append(json.loads(request.body))
            if self.refusal is not None:
                reply(self.refusal)
                return None
            stream = HttpStream(headers=SSE)
            reply(stream)
            self.streams.append(stream)
            return lambda: self.cancelled.append(stream)
        return None

    def close(self) -> None:
        pass

    def wait_asked(self, count: int) -> dict[str, Any]:
        wait_until(lambda: len(self.streams) == count)
        return self.asked[-1]

    def send(self, content: str) -> None:
        self.loop.call(self.streams[-1].send, content.encode())

    def say(self, *texts: str, kind: str = "content") -> None:
        for text in texts:
            choice = {"index": 0, "delta": {kind: text}, "finish_reason": None}
            self.send(f"data: {json.dumps({'choices': [choice], 'usage': None})}\n\n")

    def end(self, reason: str = "stop", *, tokens: int = 7) -> None:
        usage = {"prompt_tokens": 3, "completion_tokens": tokens, "total_tokens": 3 + tokens}
        last = {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}], "usage": None}
        self.send(f"data: {json.dumps(last)}\n\n")
        self.send(f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n")
        self.loop.call(self.streams[-1].end)

    def stop(self) -> None:
        self._stop.set()
        self.server.wake()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.server.turn()
        self.server.close()


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


def ask(page: Browser, agent: Agent, text: str) -> dict[str, Any]:
    """Type a message and send it with Enter; returns what the agent was asked."""
    count = len(agent.streams)
    page.evaluate("document.querySelector('#input').focus()")
    page.type(text)
    page.press("Enter")
    return agent.wait_asked(count + 1)


def answered(page: Browser, agent: Agent, text: str) -> None:
    """Have the whole of an answer on the page."""
    agent.say(text)
    agent.end()
    page.wait_for(IS_DONE)


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


@pytest.mark.parametrize("how", ["button", "Escape"])
def test_stop_frees_the_agent_and_keeps_what_was_said(
    page: Browser, agent: Agent, how: str
) -> None:
    ask(page, agent, "Long?")
    agent.say("Once upon")
    page.wait_for(f"{TEXT} === 'Once upon'")
    assert page.evaluate("document.querySelector('#go').ariaLabel") == "Stop"
    if how == "button":
        page.click("#go")
    else:
        page.press("Escape")
    page.wait_for(IS_DONE)

    def is_cancelled() -> bool:
        agent.say(" a time")
        return bool(agent.cancelled)

    wait_until(is_cancelled)
    assert page.evaluate(TEXT) == "Once upon"
    assert "Stopped" in page.evaluate(f"{ANSWER}.innerText")
    messages = ask(page, agent, "Go on.")["messages"]
    assert [message["content"] for message in messages] == ["Long?", "Once upon", "Go on."]
    answered(page, agent, "a time.")


def test_a_new_chat_forgets_all_and_cancels_what_runs(page: Browser, agent: Agent) -> None:
    ask(page, agent, "Old?")
    answered(page, agent, "Old.")
    ask(page, agent, "Older?")
    agent.say("never seen")
    page.click("#anew")

    def is_cancelled() -> bool:
        agent.say(" again")
        return bool(agent.cancelled)

    wait_until(is_cancelled)
    assert page.evaluate("document.querySelector('#talk').children.length") == 0
    assert page.evaluate("document.querySelector('#welcome').checkVisibility()")
    assert len(ask(page, agent, "New?")["messages"]) == 1
    answered(page, agent, "New.")


def refused(page: Browser, agent: Agent, status: int, message: str) -> str:
    error = {"message": message, "type": "x", "param": None, "code": None}
    agent.refusal = HttpAnswer(status=status, body=json.dumps({"error": error}).encode())
    page.type("Anybody?")
    page.press("Enter")
    text: str = page.wait_for("document.querySelector('.problem')?.innerText")
    (logged,) = page.problems  # the browser's own line about the status
    assert str(status) in logged
    page.problems.clear()
    return text


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, "cannot be answered"),
        (404, "not here"),
        (429, "busy"),
        (500, "failed"),
        (503, "not ready"),
    ],
)
def test_a_refusal_is_told_in_words_and_can_be_tried_again(
    page: Browser, agent: Agent, status: int, words: str
) -> None:
    text = refused(page, agent, status, "4 <lanes> are taken")
    assert words in text
    assert "4 <lanes> are taken" in text
    agent.refusal = None
    page.click(".again")
    assert agent.wait_asked(1)["messages"] == [{"role": "user", "content": "Anybody?"}]
    answered(page, agent, "Me.")
    assert page.evaluate("document.querySelectorAll('#talk > *').length") == 2
    assert page.evaluate("document.querySelector('.problem')") is None


def test_a_question_that_got_no_answer_is_not_sent_again(page: Browser, agent: Agent) -> None:
    refused(page, agent, 400, "too long")
    agent.refusal = None
    assert [m["content"] for m in ask(page, agent, "Shorter?")["messages"]] == ["Shorter?"]
    answered(page, agent, "Better.")


@pytest.mark.parametrize("how", ["cut", "error", "no end"])
def test_an_answer_that_breaks_off_says_so_and_keeps_what_came(
    page: Browser, agent: Agent, how: str
) -> None:
    ask(page, agent, "Whole?")
    agent.say("Only the first")
    page.wait_for(f"{TEXT} === 'Only the first'")
    if how == "cut":
        agent.loop.call(agent.streams[-1].break_off)
    elif how == "error":
        agent.send('data: {"error": {"message": "the model failed"}}\n\n')
        agent.loop.call(agent.streams[-1].end)
    else:
        agent.loop.call(agent.streams[-1].end)
    problem = page.wait_for("document.querySelector('.problem')?.innerText")
    assert ("the model failed" if how == "error" else "broke off") in problem
    assert page.evaluate(TEXT) == "Only the first"
    page.click(".again")
    assert len(agent.wait_asked(2)["messages"]) == 1
    answered(page, agent, "The whole.")
    page.evaluate("0")
    page.problems[:] = [line for line in page.problems if "ERR_INCOMPLETE_CHUNKED" not in line]


def test_a_limit_of_length_is_named(page: Browser, agent: Agent) -> None:
    ask(page, agent, "Long?")
    agent.say("and on and")
    agent.end("length")
    page.wait_for(IS_DONE)
    assert "length limit" in page.evaluate(f"{ANSWER}.innerText")


def reopened(page: Browser, agent: Agent) -> None:
    page.open("about:blank")
    page.open(agent.server.url + PAGE_PATH)
    page.wait_for("document.querySelector('#model').classList.contains('is-here')")


def test_of_several_models_only_those_that_chat_can_be_chosen(page: Browser, agent: Agent) -> None:
    agent.models = [
        {"id": "encoder", "edge_kit": {"kind": "embeddings"}},
        {"id": "small", "edge_kit": {"kind": "chat"}},
        {"id": "large", "edge_kit": {"kind": "chat"}},
    ]
    reopened(page, agent)
    options = "[...document.querySelectorAll('#models option')].map((one) => one.value)"
    assert page.evaluate(options) == ["small", "large"]
    page.evaluate("document.querySelector('#models').value = 'large'")
    assert ask(page, agent, "Who?")["model"] == "large"
    answered(page, agent, "Me.")


def test_the_page_waits_for_an_agent_that_starts(page: Browser, agent: Agent) -> None:
    agent.unready = 1
    page.open("about:blank")
    page.open(agent.server.url + PAGE_PATH)
    page.wait_for("document.querySelector('#name').innerText === 'The model is not ready yet.'")
    page.wait_for("document.querySelector('#model').classList.contains('is-here')")
    assert len(page.problems) == 1
    page.problems.clear()


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
