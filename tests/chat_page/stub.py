"""An agent that says what the test wants, and what a test does with the page.

It is this project's HTTP server with a handler of the tests: what is streamed is known, and when.
"""

from __future__ import annotations

import json
import threading
from typing import Any

from edge.chat.page import PAGE_PATH, chat_page
from edge.http_answer import HttpAnswer, json_error
from edge.http_handler import Cancel, Reply
from edge.http_request import HttpRequest
from edge.http_server import HttpServer, Loop
from edge.http_stream import HttpStream
from tests.browser import Browser
from tests.fakes import wait_until

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


def reopened(page: Browser, agent: Agent) -> None:
    page.open("about:blank")
    page.open(agent.server.url + PAGE_PATH)
    page.wait_for("document.querySelector('#model').classList.contains('is-here')")
