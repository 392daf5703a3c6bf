"""Chat over HTTP, from a whole request to the last byte of its answer, streamed or not.

Requests are read in helpers' threads, as a prompt may take long to tokenize; everything else
happens in the event loop, and no thread is held while an answer is made.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from edge import openai_form
from edge.chat.answer import EVENTS, Prepared
from edge.chat.chat_model import ChatModel
from edge.chat.generation import End, Generation, Piece
from edge.chat.openai_request import (
    MAX_BODY_BYTES,
    chat_request,
    completion_request,
    model_of,
)
from edge.chat.page import PAGE_PATH, chat_page
from edge.chat.plain import model_of_plain
from edge.errors import DeadlineError, EdgeError, InputError
from edge.http_answer import (
    AGENT_FAILED,
    HttpAnswer,
    answer_from_error,
    json_error,
    packed,
    unpacked,
    wrong_method,
)
from edge.http_handler import Cancel, CancelAtEof, Handler, Reply
from edge.http_request import HttpRequest
from edge.http_server import Loop
from edge.http_stream import HttpStream
from edge.pool import Pool
from edge.served import ServedChat
from edge.serving import Serving
from edge.traces import Stage, Traced, Traces

HELPERS = 2
# While an answer has no lane its client is told so often how many are before it.
QUEUE_NEWS_S = 1.0
AHEAD_HEADER = "Edge-Queue-Ahead"

logger = logging.getLogger(__name__)

Read = Callable[[ChatModel, bytes], Prepared]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Path:
    """How one path is read. name: in traces. is_openai: whether its errors have OpenAI's form."""

    name: str
    read: Read
    is_openai: bool


_PATHS = {
    "/v1/chat/completions": _Path(
        name="chat", read=lambda model, body: model.chat(chat_request(body)), is_openai=True
    ),
    "/v1/completions": _Path(
        name="completions",
        read=lambda model, body: model.complete(completion_request(body)),
        is_openai=True,
    ),
    PAGE_PATH: _Path(name="chat", read=lambda model, body: model.ask(body), is_openai=False),
}


class ChatHandler:
    """Answers what is said to chat models, and leaves every other request to `otherwise`.

    timeout_s: of an answer, from the request to its last token.
    """

    def __init__(
        self,
        serving: Serving,
        loop: Loop,
        otherwise: Handler,
        *,
        max_body_bytes: int,
        timeout_s: float,
        clock: Callable[[], float],
        traces: Traces | None = None,
    ) -> None:
        self.serving = serving
        self.traces = traces
        self.loop = loop
        self.helpers = Pool(HELPERS, "chat")
        self.max_body_bytes = min(max_body_bytes, MAX_BODY_BYTES)
        self.timeout_s = timeout_s
        self.clock = clock
        self._otherwise = otherwise

    def admit(self, method: str, path: str) -> HttpAnswer | None:
        """Refuse nothing here: the body names the model."""
        return None if _path_of(path) is not None else self._otherwise.admit(method, path)

    def __call__(self, request: HttpRequest, reply: Reply) -> Cancel | None:
        """Begin to answer one request."""
        path = _path_of(request.path)
        if path is None:
            return self._otherwise(request, reply)

        def send(answer: HttpAnswer) -> None:
            self.serving.metrics.record_response(answer.status)
            reply(packed(answer, request.header(b"accept-encoding")))

        if request.path.rstrip("/") == PAGE_PATH and request.method in {"GET", "HEAD"}:
            send(chat_page())
            return None
        if request.method != "POST":
            allowed = "POST" if path.is_openai else "GET, POST"
            send(_in_form(wrong_method(request.method, request.path, allowed), path))
            return None
        call = _ChatCall(self, path, request, reply, send)
        call.begin()
        return CancelAtEof(call.cancel)

    def close(self) -> None:
        """Stop the helpers, once they have done what they do."""
        self.helpers.close()
        self._otherwise.close()


class _ChatCall:
    """One request and its answers. It lives in the loop's thread; see `_elsewhere`."""

    def __init__(
        self,
        handler: ChatHandler,
        path: _Path,
        request: HttpRequest,
        reply: Reply,
        send: Callable[[HttpAnswer], None],
    ) -> None:
        self._handler = handler
        self._path = path
        self._request = request
        self._reply = reply
        self._send = send
        self._started = self._begun = handler.clock()
        self._served: ServedChat | None = None
        self._prepared: Prepared | None = None
        self._generations: list[Generation] = []
        self._left = 0  # answers that have not ended
        self._stages: list[Stage] = []
        self._stream: HttpStream | None = None
        self._timers: list[Callable[[], None]] = []
        self._is_over = self._is_late = False

    def begin(self) -> None:
        """Read the request in a helper's thread, and go on."""

        def run() -> None:
            try:
                served, prepared = self._read()
            except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer
                self._handler.loop.call(self._fail, error)
            else:
                self._handler.loop.call(self._guarded, self._submit, served, prepared)

        self._handler.helpers.submit(run)

    def cancel(self) -> None:
        """Forget it: the client has gone."""
        if not self._is_over and self._served is not None:
            self._served.record_error("cancelled", total_s=self._now() - self._started)
        self._end()

    def _read(self) -> tuple[ServedChat, Prepared]:
        handler, encoding = self._handler, self._request.header(b"content-encoding")
        body = unpacked(self._request.body, encoding, max_body_bytes=handler.max_body_bytes)
        served = handler.serving.served_chat(self._model_name(body))
        return served, self._path.read(served.talker, body)

    def _model_name(self, body: bytes) -> str:
        """Return the model that a request is for; without a name, the only one there is."""
        name = model_of(body) if self._path.is_openai else model_of_plain(body)
        if name is not None:
            return name
        chats = [model.name for model in self._handler.serving.models if model.chat is not None]
        if not chats:
            raise InputError("this bundle has no chat model; GET /v1/models lists what it has")
        return chats[0]

    def _submit(self, served: ServedChat, prepared: Prepared) -> None:
        if self._is_over:
            return
        self._begun = self._now()
        while not served.places.take():  # it was replaced at this very moment
            served = self._handler.serving.served_chat(served.model.name)
        self._served, self._prepared = served, prepared
        self._left = len(prepared.generations)
        for index, request in enumerate(prepared.generations):
            self._generations.append(served.generator.submit(request, _Ear(self, index)))
        later = self._handler.loop.events.call_later
        timer = later(max(0.0, self._started + self._handler.timeout_s - self._begun), self._expire)
        self._timers.append(timer.cancel)
        if prepared.answer.is_stream:
            self._open_stream(served, prepared)

    def _open_stream(self, served: ServedChat, prepared: Prepared) -> None:
        ahead = self._ahead(served)
        headers = {
            "Content-Type": prepared.answer.content_type,
            "Cache-Control": "no-cache",
            "X-Accel-Buffering": "no",
            AHEAD_HEADER: str(ahead or 0),
        }
        self._stream = HttpStream(status=200, headers=headers)
        self._handler.serving.metrics.record_response(200)
        self._reply(self._stream)
        self._stream.send(prepared.answer.open())
        if ahead is not None and prepared.answer.content_type.startswith(EVENTS):
            self._tell_later(served)

    def _tell_later(self, served: ServedChat) -> None:
        timer = self._handler.loop.events.call_later(QUEUE_NEWS_S, self._tell, served)
        self._timers.append(timer.cancel)

    def _tell(self, served: ServedChat) -> None:
        """Say how many are before this; a comment to clients, and a sign of life to proxies."""
        ahead = self._ahead(served)
        if self._is_over or self._stream is None or ahead is None:
            return
        self._stream.send(b": ahead %d\n\n" % ahead)
        self._tell_later(served)

    def _ahead(self, served: ServedChat) -> int | None:
        """Return how many get a lane before the first of these answers; None if it has one."""
        places = [served.generator.ahead(generation) for generation in self._generations]
        waiting = [place for place in places if place is not None]
        return min(waiting) if len(waiting) == len(places) else None

    def take_piece(self, index: int, piece: Piece) -> None:
        """Send on what has come of one answer."""
        if not self._is_over and self._prepared is not None:
            self._guarded(self._take_piece, index, piece, self._prepared)

    def take_end(self, index: int, end: End) -> None:
        """Take the end of one answer; after the last the request is answered."""
        if not self._is_over and self._prepared is not None and self._served is not None:
            self._guarded(self._take_end, index, end, self._prepared, self._served)

    def _take_piece(self, index: int, piece: Piece, prepared: Prepared) -> None:
        content = prepared.answer.piece(index, piece)
        if content and self._stream is not None:
            self._stream.send(content)

    def _take_end(self, index: int, end: End, prepared: Prepared, served: ServedChat) -> None:
        if end.reason == "cancelled" and self._is_late:
            end = replace(end, reason="error", error=self._too_late(served))
        self._stages += _stages(end, self._begun)
        if end.error is not None:
            self._fail(end.error, index=index, end=end)
            return
        self._left -= 1
        served.record_end(end, parse_s=self._begun - self._started)
        content = prepared.answer.end(index, end)
        if self._stream is not None:
            self._stream.send(content)
        if self._left:
            return
        stream = self._stream
        self._end()
        self._trace(200)
        if stream is not None:
            stream.end()
        else:
            headers = {"Content-Type": prepared.answer.content_type}
            self._send(HttpAnswer(status=200, body=content, headers=headers))

    def _expire(self) -> None:
        if not self._is_over and self._served is not None:
            self._is_late = True
            for generation in self._generations:
                self._served.generator.cancel(generation)

    def _too_late(self, served: ServedChat) -> DeadlineError:
        return DeadlineError(
            f"model {served.model.name!r} did not finish this answer within "
            f"{self._handler.timeout_s:g} s; ask for fewer tokens, or raise chat_timeout_s"
        )

    def _fail(self, error: Exception, *, index: int = 0, end: End | None = None) -> None:
        """Tell the client that there is no answer, or no rest of one."""
        if self._is_over:
            return
        code = error.code if isinstance(error, EdgeError) else "error"
        if not isinstance(error, EdgeError):
            logger.error("request failed path=%s", self._request.path, exc_info=error)
        if self._served is not None:
            self._served.record_error(code, total_s=self._now() - self._started)
        stream, prepared = self._stream, self._prepared
        self._end()
        refusal = _refusal(error, self._path)
        self._trace(refusal.status if stream is None else 200, error=code)
        if stream is None:
            self._send(refusal)
        elif end is None or prepared is None:
            stream.break_off()
        else:
            try:
                stream.send(prepared.answer.end(index, end))
            except EdgeError:  # a stream of text alone has no words for it
                stream.break_off()
            else:
                stream.end()

    def _trace(self, status: int, *, error: str | None = None) -> None:
        traces, served = self._handler.traces, self._served
        if traces is None or served is None:
            return
        traced = Traced(
            name=self._path.name,
            model=served.model.name,
            version=served.model.version,
            status=status,
            error=error,
            start=self._started,
            end=self._now(),
            stages=(Stage(name="read", start=self._started, end=self._begun), *self._stages),
        )
        traces.record(self._request, traced)

    def _end(self) -> None:
        """Let go of everything; answers that are still made are cancelled."""
        if self._is_over:
            return
        self._is_over = True
        for cancel in self._timers:
            cancel()
        if self._served is not None:
            for generation in self._generations:
                if generation.reason is None:
                    self._served.generator.cancel(generation)
            self._served.places.give_back()

    def _guarded(self, step: Callable[..., None], *arguments: object) -> None:
        try:
            step(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer
            self._fail(error)

    def _now(self) -> float:
        return self._handler.clock()


class _Ear:
    """Hears of one answer in the generator's thread, and tells the loop's."""

    def __init__(self, call: _ChatCall, index: int) -> None:
        self._call = call
        self._index = index
        self._tell = call._handler.loop.call

    def on_piece(self, piece: Piece) -> None:
        self._tell(self._call.take_piece, self._index, piece)

    def on_end(self, end: End) -> None:
        self._tell(self._call.take_end, self._index, end)


def _stages(end: End, begun: float) -> list[Stage]:
    """Return when an answer waited, ran its prompt, and was made, as far as it came to that."""
    stages, start = [], begun
    for name, until_s in (("queue", end.queue_s), ("prefill", end.first_token_s), ("decode", None)):
        stop = begun + (end.total_s if until_s is None else until_s)
        stages.append(Stage(name=name, start=start, end=stop))
        if until_s is None:
            break
        start = stop
    return stages


@functools.lru_cache(maxsize=128)
def _path_of(path: str) -> _Path | None:
    return _PATHS.get(path.rstrip("/"))


def _refusal(error: Exception, path: _Path) -> HttpAnswer:
    if not isinstance(error, EdgeError):
        return _in_form(json_error(500, AGENT_FAILED), path)
    return openai_form.error_answer(error) if path.is_openai else answer_from_error(error)


def _in_form(answer: HttpAnswer, path: _Path) -> HttpAnswer:
    return openai_form.in_openai_form(answer) if path.is_openai else answer
