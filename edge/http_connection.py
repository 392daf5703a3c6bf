"""One HTTP connection: bytes in, whole requests out, answers back in their order.

httptools (llhttp) parses; this adds what keeps a server alive: caps on head and body before memory
is taken, time limits against clients that trickle, and refusals that arrive, as a client in the
middle of its body would lose an answer if its bytes stayed unread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httptools

from edge.access import Access
from edge.errors import QueueFullError
from edge.http_answer import HttpAnswer, answer_from_error, answer_head, json_error, too_large
from edge.http_handler import Cancel, CancelAtEof, Handler
from edge.http_limits import Budget, ClientPlaces, client_from_address
from edge.http_outlet import Outlet
from edge.http_request import ArrivingRequest, RefusedError
from edge.http_stream import HttpStream
from edge.wsgi_environ import target_of

MAX_HEADER_BYTES = 16 << 10
IDLE_S = 60.0  # without a request; also without progress of an answer
ARRIVAL_S = 20.0  # for a head, and between two pieces of a body
LINGER_S = 30.0
MAX_DISCARDED_BYTES = 1 << 30
# Answered in no time, and asked by those who watch the agent: no limit per client keeps them out.
WATCHING_METHODS = {"GET", "HEAD"}

_TOO_LONG_A_HEAD = json_error(
    431, f"Request Header Fields Too Large: more than {MAX_HEADER_BYTES} bytes"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What all connections of a server share."""

    handler: Handler
    loop: asyncio.AbstractEventLoop
    address: tuple[str, int]
    max_body_bytes: int
    access: Access
    arriving: Budget
    per_client: ClientPlaces  # of requests, from the head to the answer
    on_refusal: Callable[[int], None]
    on_open: Callable[[Connection], HttpAnswer | None]  # an answer refuses the connection
    on_close: Callable[[Connection], None]


class Connection(asyncio.Protocol):
    """Lives in the loop's thread."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._transport: Any = None
        self._outlet: Outlet  # as soon as there is a transport
        self._parser = httptools.HttpRequestParser(self)
        self._arriving: ArrivingRequest | None = None
        self._waiting: deque[ArrivingRequest] = deque()
        self._answering: ArrivingRequest | None = None
        self._stream: HttpStream | None = None  # the answer, if it has begun
        self._cancel: Cancel | None = None
        self._remote = ""
        self.client = ""  # as `ClientPlaces` counts it
        self._last = rules.loop.time()
        self._lingers_until: float | None = None
        self._discarded = 0
        self._is_ended = False  # the client sends no more, or nothing that is read
        self._offered: ArrivingRequest | None = None  # with an offer of another protocol
        self.is_draining = False
        self.is_counted = False  # among the connections of its client

    # The transport's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = transport
        self._outlet = Outlet(transport, self._rules.loop)
        peer = transport.get_extra_info("peername")
        self._remote = peer[0] if peer else ""
        self.client = client_from_address(self._remote)
        refusal = self._rules.on_open(self)
        if refusal is not None:
            self._refuse(refusal)

    def data_received(self, data: bytes) -> None:
        """Take in what came."""
        self._last = self._rules.loop.time()
        if self._lingers_until is not None:
            self._discarded += len(data)
            if self._discarded > MAX_DISCARDED_BYTES:
                self._transport.abort()
            return
        try:
            if self._offered is not None:
                self._take_offered(self._offered, data)
                return
            self._parser.feed_data(data)
            arriving = self._arriving
            if arriving is not None and not arriving.is_headed:
                arriving.head_bytes += len(data)
                if arriving.head_bytes > MAX_HEADER_BYTES:
                    raise RefusedError(_TOO_LONG_A_HEAD)
        except httptools.HttpParserUpgrade as error:
            if self._offered is not None:
                self.data_received(data[error.args[0] :])
        except (httptools.HttpParserError, RefusedError) as error:
            cause = error if isinstance(error, RefusedError) else error.__context__
            if isinstance(cause, RefusedError):
                self._refuse(cause.answer)
            else:
                self._refuse(json_error(400, f"Bad Request: no HTTP that can be read: {error}"))

    def eof_received(self) -> bool:
        """Keep the way back open while an answer is due."""
        self._is_ended = True
        if self._lingers_until is not None:
            return False
        if self._arriving is not None:
            if self._arriving.is_headed:
                message = "Bad Request: the body ends before its announced length"
                self._refuse(json_error(400, message))
                return True
            self._arriving = None
        if isinstance(self._cancel, CancelAtEof):
            return False
        return self._answering is not None or bool(self._waiting)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of whatever was being made for the client."""
        self._drop_all()
        self._rules.on_close(self)
        del self._parser  # it holds our methods: together they would wait for the collector

    # The parser's side.

    def on_message_begin(self) -> None:
        """A request begins."""
        self._arriving = ArrivingRequest()

    def on_url(self, url: bytes) -> None:
        """Add a piece of the target."""
        request = self._current()
        request.url += url
        request.head_bytes += len(url)
        if request.head_bytes > MAX_HEADER_BYTES:
            raise RefusedError(_TOO_LONG_A_HEAD)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header."""
        request = self._current()
        request.add_header(name, value)
        request.head_bytes += len(name) + len(value)
        if request.head_bytes > MAX_HEADER_BYTES:
            raise RefusedError(_TOO_LONG_A_HEAD)

    def on_headers_complete(self) -> None:
        """Decide whether the body may come."""
        request = self._current()
        request.is_headed = True
        request.method = self._parser.get_method().decode("ascii")
        request.version = self._parser.get_http_version()
        fields = request.headers
        if self._parser.should_upgrade() and b"transfer-encoding" in fields:
            raise RefusedError(json_error(400, "Bad Request: an upgrade with a chunked body"))
        length = fields.get(b"content-length", b"")
        if length.isdigit() and (len(length) > 15 or int(length) > self._rules.max_body_bytes):
            raise RefusedError(self._too_large())
        try:
            request.path, request.query = target_of(request.url)
        except httptools.HttpParserInvalidURLError:
            message = "Bad Request: the target of the request is malformed"
            raise RefusedError(json_error(400, message)) from None
        request.refusal = self._admit(request)
        if fields.get(b"expect", b"").lower() == b"100-continue":
            if request.refusal is None:
                self._outlet.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            elif self._answering is None:  # nobody knows whether the body still comes
                raise RefusedError(request.refusal)

    def on_body(self, body: bytes) -> None:
        """Add a piece of the body."""
        request = self._current()
        request.body_bytes += len(body)
        if request.body_bytes > self._rules.max_body_bytes:
            raise RefusedError(self._too_large())
        if request.refusal is not None:
            return
        if not self._rules.arriving.take(len(body)):
            message = "Service Unavailable: other bodies fill the memory for them; retry later"
            raise RefusedError(json_error(503, message))
        request.taken += len(body)
        request.body.append(body)

    def on_message_complete(self) -> None:
        """Put the request into line."""
        request = self._current()
        if self._parser.should_upgrade():
            # Java and curl offer HTTP/2 so. The offer is passed over, and the request answered as
            # the last one here; llhttp ends before its body, which is taken in without it.
            self._offered = request
            return
        request.keeps_alive = self._parser.should_keep_alive()
        self._line_up(request)

    def _admit(self, request: ArrivingRequest) -> HttpAnswer | None:
        """Take a place for a request; where it gets none, return what its client is told."""
        refusal = self._rules.access.refusal(request.method, request.headers)
        if refusal is not None:
            self._rules.on_refusal(refusal.status)
            return refusal
        places = self._rules.per_client
        if request.method not in WATCHING_METHODS:
            if not places.take(self.client):
                message = f"client {self.client} has {places.most} requests here; retry later"
                self._rules.on_refusal(429)
                return answer_from_error(QueueFullError(message))
            request.has_place = True
        refusal = self._rules.handler.admit(request.method, request.path)
        if refusal is not None:
            self._drop(request)
        return refusal

    def _take_offered(self, request: ArrivingRequest, data: bytes) -> None:
        length = int(request.headers.get(b"content-length", b"0"))
        self.on_body(data[: length - request.body_bytes])
        if request.body_bytes >= length:
            self._offered, self._is_ended = None, True
            self._transport.pause_reading()
            self._line_up(request)

    def _line_up(self, request: ArrivingRequest) -> None:
        self._arriving = None
        self._waiting.append(request)
        if self._answering is None:
            self._next()
        else:  # one at a time; the next may have come along with this one
            self._transport.pause_reading()

    # Answers.

    @property
    def is_busy(self) -> bool:
        """Whether a request is arriving, being answered, or its answer not yet sent."""
        unsent = self._outlet.unsent_bytes > 0
        return bool(unsent or self._answering or self._arriving or self._waiting)

    def sweep(self, now: float) -> None:
        """End what lasts too long; called every second or so."""
        if self._outlet.has_moved(now):
            self._last = now
        if self._lingers_until is not None:
            if now > self._lingers_until:
                self._transport.abort()
        elif self._answering is not None:  # who waits for a model is quiet, but takes what it gets
            if self._outlet.stalled_s(now) > IDLE_S:
                self._transport.abort()
        elif self._arriving is not None and now - self._last > ARRIVAL_S:
            self._refuse(json_error(408, "the request did not arrive in time; send it again"))
        elif now - self._last > IDLE_S:
            self._transport.abort()

    def close(self) -> None:
        """Close after what is still to be sent."""
        self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def _next(self) -> None:
        request = self._answering = self._waiting.popleft()
        if not self._waiting and not self._is_ended:
            self._transport.resume_reading()
        if request.refusal is not None:
            self._reply(request, request.refusal)
            return
        self._cancel = None
        whole = request.whole(client=self._remote, server=self._rules.address)
        cancel = self._rules.handler(whole, lambda answer: self._reply(request, answer))
        if self._answering is request:  # not answered yet
            self._cancel = cancel

    def _reply(self, request: ArrivingRequest, answer: HttpAnswer | HttpStream) -> None:
        """Send the answer to the request that is being answered; one that is gone gets none."""
        if self._answering is not request:
            return
        if self._stream is not None:
            raise ValueError("a request is answered once, and its stream has begun")
        has_body, closes = request.method != "HEAD", self._closes_after(request)
        if isinstance(answer, HttpAnswer):
            self._write(answer, closes=closes, has_body=has_body)
            self._end(request, closes=closes)
            return
        self._stream = answer
        answer.begin(
            self._outlet,
            version=request.version,
            closes=closes,
            has_body=has_body,
            on_end=lambda closes: self._end(request, closes=closes or self._closes_after(request)),
        )

    def _closes_after(self, request: ArrivingRequest) -> bool:
        last = self._is_ended and not self._waiting
        return not request.keeps_alive or self.is_draining or last

    def _end(self, request: ArrivingRequest, *, closes: bool) -> None:
        """Go on after an answer, all of which was written."""
        self._answering = self._stream = self._cancel = None
        self._drop(request)
        self._last = self._rules.loop.time()
        if closes:
            self._transport.close()
        elif self._waiting:
            self._rules.loop.call_soon(self._resume)

    def _resume(self) -> None:
        if self._waiting and self._answering is None and not self._transport.is_closing():
            self._next()

    def _refuse(self, answer: HttpAnswer) -> None:
        """Answer at once, then read on for a while: a reset would destroy the answer."""
        if self._stream is not None:  # its client would take the refusal for a piece of the body
            self._stream.cut()
            self._drop_all()
            return
        if self._arriving is None or self._arriving.refusal is not answer:  # else it is counted
            self._rules.on_refusal(answer.status)
        self._drop_all()
        self._write(answer, closes=True)
        self._lingers_until = self._rules.loop.time() + LINGER_S
        if self._is_ended or not self._transport.can_write_eof():
            self._transport.close()
        else:
            self._transport.resume_reading()
            self._transport.write_eof()

    def _write(self, answer: HttpAnswer, *, closes: bool, has_body: bool = True) -> None:
        body = answer.body if has_body else b""
        self._outlet.write_both(answer_head(answer, closes=closes), body)

    def _drop_all(self) -> None:
        """Let go of every request; nobody will hear the answer to the one under way."""
        cancel, self._cancel = self._cancel, None
        if self._stream is not None:
            self._stream.let_go()
        for request in (self._answering, self._arriving, *self._waiting):
            if request is not None:
                self._drop(request)
        self._answering = self._arriving = self._offered = self._stream = None
        self._waiting.clear()
        if cancel is not None:
            cancel()

    def _drop(self, request: ArrivingRequest) -> None:
        self._rules.arriving.give_back(request.taken)
        request.taken = 0
        if request.has_place:
            request.has_place = False
            self._rules.per_client.give_back(self.client)

    def _current(self) -> ArrivingRequest:
        if self._arriving is None:
            self._arriving = ArrivingRequest()
        return self._arriving

    def _too_large(self) -> HttpAnswer:
        return json_error(413, str(too_large(self._rules.max_body_bytes)))
