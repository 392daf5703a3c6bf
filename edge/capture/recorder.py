"""Records real requests for whoever asks over HTTP, if the configuration allows it.

    POST   /capture   {"seconds", "max_bytes", "share", "redact"}: begin
    GET    /capture   the frames of `capture_file` that have come up since the last time
    DELETE /capture   end; what is held can still be fetched

It stands before the handler that answers. A recording that nobody fetches is given up, so the
agent needs no place to write and little memory. Answers that are streamed pass by: they are
counted, not recorded.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Collection
from datetime import datetime, timezone

import msgspec
import numpy as np

from edge import __version__
from edge.capture.capture_file import (
    CAPTURE_PATH,
    RECORDED_HEADERS,
    STATE_HEADER,
    VERSION,
    End,
    EndReason,
    Exchange,
    Head,
    frame_bytes,
)
from edge.capture.recording import Recording, Wish
from edge.capture.redaction import redacted
from edge.http_answer import AGENT_FAILED, HttpAnswer, json_error
from edge.http_handler import Cancel, Handler, Reply
from edge.http_request import HttpRequest
from edge.http_server import Loop
from edge.http_stream import HttpStream
from edge.pool import Pool
from edge.routes import Route

ABANDONED_S = 10.0
MAX_POLL_BYTES = 4 << 20
NOT_ALLOWED = (
    "this agent may not record requests; set allow_capture (--allow-capture, EDGE_ALLOW_CAPTURE) "
    "and restart it, if whoever reaches it may see what is sent to it"
)

logger = logging.getLogger(__name__)


class Recorder:
    """A Handler around another. Everything but `_send_frames` happens in the loop's thread.

    input_names: of all models that are served; a name to redact must be one of them.
    count: called with the status of every answer that is not the other handler's.
    """

    def __init__(
        self,
        handler: Handler,
        loop: Loop,
        *,
        is_allowed: bool,
        input_names: Callable[[], Collection[str]],
        max_body_bytes: int,
        count: Callable[[int], None],
        clock: Callable[[], float] = time.monotonic,
        rng: np.random.Generator | None = None,
    ) -> None:
        self._handler = handler
        self._loop = loop
        self._input_names = input_names
        self._max_body_bytes = max_body_bytes
        self._count = count
        self._clock = clock
        self._rng = rng or np.random.default_rng()
        # One thread: frames leave in the order in which they came.
        self._pool = Pool(1, "capture") if is_allowed else None
        self._recording: Recording | None = None
        self._abandon: asyncio.TimerHandle | None = None

    def admit(self, method: str, path: str) -> HttpAnswer | None:
        """Refuse what the other handler refuses."""
        return self._handler.admit(method, path)

    def __call__(self, request: HttpRequest, reply: Reply) -> Cancel | None:
        """Begin to answer one request, and record it if somebody asked for that."""
        if request.path.removesuffix("/") == CAPTURE_PATH:
            self._control(request.method, request.body, reply)
            return None
        recording = self._recording
        if recording is None or not recording.wants_next():
            return self._handler(request, reply)
        if request.method != "POST" or Route.of(request.path) is None:
            return self._handler(request, reply)
        arrived = self._clock()

        def note(answer: HttpAnswer | HttpStream) -> None:
            reply(answer)
            if isinstance(answer, HttpStream):
                recording.note_stream()
                return
            answered = answer.headers
            recording.add(
                Exchange(
                    offset_s=arrived - recording.started,
                    method=request.method,
                    path=request.path,
                    headers={n: v for n in RECORDED_HEADERS if (v := _header(request, n))},
                    body=request.body,
                    status=answer.status,
                    answer_headers={n: answered[n] for n in RECORDED_HEADERS if n in answered},
                    answer=answer.body,
                    latency_s=self._clock() - arrived,
                )
            )

        return self._handler(request, note)

    def close(self) -> None:
        """Give up a recording, and stop the other handler."""
        self._forget()
        if self._pool is not None:
            self._pool.close()
        self._handler.close()

    def _control(self, method: str, body: bytes, reply: Reply) -> None:
        if self._pool is not None and self._recording is not None and method == "GET":
            self._fetch(self._pool, self._recording, reply)
            return
        if self._pool is None:
            answer = json_error(403, NOT_ALLOWED)
        elif method == "POST":
            answer = self._begin(body)
        elif method not in {"GET", "DELETE"}:
            answer = json_error(405, f"{CAPTURE_PATH} does not take {method}")
            answer.headers["Allow"] = "DELETE, GET, POST"
        elif self._recording is None:
            answer = json_error(404, f"nothing is being recorded; POST {CAPTURE_PATH} begins it")
        else:
            self._recording.stop()
            answer = HttpAnswer(status=200, body=b"{}")
        self._count(answer.status)
        reply(answer)

    def _begin(self, body: bytes) -> HttpAnswer:
        if self._recording is not None:
            return json_error(409, f"a recording is under way; DELETE {CAPTURE_PATH} ends it")
        try:
            wish = msgspec.json.decode(body or b"{}", type=Wish)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            return json_error(400, f"the body is no wish for a recording: {error}")
        known = self._input_names()
        unknown = [name for name in wish.redact if name not in known]
        if unknown:
            names = ", ".join(sorted(known))
            return json_error(400, f"no model has an input {unknown[0]!r} to redact, only {names}")
        self._recording = recording = Recording(wish, clock=self._clock, rng=self._rng)
        head = Head(
            version=VERSION,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            agent=__version__,
            share=wish.share,
            redact=wish.redact,
        )
        self._wait_for_fetch()
        logger.info(
            "recording began seconds=%g share=%g redact=%s",
            wish.seconds,
            wish.share,
            ",".join(wish.redact) or "nothing",
        )
        return _frames(frame_bytes(head), recording.end_reason)

    def _fetch(self, pool: Pool, recording: Recording, reply: Reply) -> None:
        taken, reason = recording.take(MAX_POLL_BYTES), None
        if recording.is_empty:
            reason = recording.end_reason
        if reason is None:
            self._wait_for_fetch()
        else:
            self._forget()
            logger.info("recording ended reason=%s dropped=%d", reason, recording.dropped)
        pool.submit(functools.partial(self._send_frames, recording, taken, reason, reply))

    def _send_frames(
        self, recording: Recording, taken: list[Exchange], reason: EndReason | None, reply: Reply
    ) -> None:
        try:
            answer = _frames(self._encoded(recording, taken, reason), reason)
        except Exception as error:
            logger.error("a recording could not be sent", exc_info=error)
            answer = json_error(500, AGENT_FAILED)
        self._loop.call(self._count, answer.status)
        self._loop.call(reply, answer)

    def _encoded(
        self, recording: Recording, taken: list[Exchange], reason: EndReason | None
    ) -> bytes:
        frames = []
        for exchange in taken:
            kept = redacted(exchange, recording.wish.redact, max_body_bytes=self._max_body_bytes)
            if kept is None:
                recording.unredactable += 1
            else:
                frames.append(frame_bytes(kept))
        if reason is not None:
            end = End(
                reason=reason,
                dropped=recording.dropped,
                unredactable=recording.unredactable,
                streamed=recording.streamed,
            )
            frames.append(frame_bytes(end))
        return b"".join(frames)

    def _wait_for_fetch(self) -> None:
        if self._abandon is not None:
            self._abandon.cancel()
        self._abandon = self._loop.events.call_later(ABANDONED_S, self._give_up)

    def _give_up(self) -> None:
        self._forget()
        logger.warning("recording given up: nobody fetched it for %g s", ABANDONED_S)

    def _forget(self) -> None:
        self._recording = None
        if self._abandon is not None:
            self._abandon.cancel()
            self._abandon = None


def _header(request: HttpRequest, name: str) -> str:
    return request.header(name.lower().encode())


def _frames(content: bytes, reason: EndReason | None) -> HttpAnswer:
    headers = {
        "Content-Type": "application/octet-stream",
        STATE_HEADER: "recording" if reason is None else "over",
    }
    return HttpAnswer(status=200, body=content, headers=headers)
