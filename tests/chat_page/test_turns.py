"""Turns of a conversation: stopped, refused, broken off, begun anew, waiting in line."""

from __future__ import annotations

import json

import pytest

from edge.chat.page import PAGE_PATH
from edge.http_answer import HttpAnswer
from tests.browser import Browser
from tests.chat_page.stub import ANSWER, IS_DONE, TEXT, Agent, answered, ask, reopened
from tests.fakes import wait_until

pytestmark = pytest.mark.slow


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


def test_the_place_in_line_is_told_until_it_is_ones_turn(page: Browser, agent: Agent) -> None:
    ask(page, agent, "Me too?")
    pause = f"{ANSWER}.querySelector('.pause')?.textContent"
    agent.send(": ahead 12\n\n")
    assert page.wait_for(f"{pause}?.includes('12 before you') && {pause}").startswith("In line")
    agent.send(": ahead 1\n\n")
    page.wait_for(f"{pause}?.includes('1 before you')")
    spoken = page.evaluate("document.querySelector('#spoken').innerText")
    assert [line for line in spoken.splitlines() if line] == [
        "In line, 12 before you",
        "In line, 1 before you",
    ]
    agent.send(": ahead 0\n\n")
    page.wait_for(f"!{pause}?.includes('before you')")
    answered(page, agent, "Of course.")
    assert page.evaluate(TEXT) == "Of course."
    assert "before you" not in page.evaluate(f"{ANSWER}.innerText")


def test_words_of_a_model_that_look_like_news_of_the_line_stay_words(
    page: Browser, agent: Agent
) -> None:
    ask(page, agent, "Say it")
    answered(page, agent, ": ahead 3")
    assert page.evaluate(TEXT) == ": ahead 3"
    assert "before you" not in page.evaluate("document.querySelector('#spoken').innerText")
