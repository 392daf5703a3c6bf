"""Inference over HTTP, from a whole request to its answer.

Everything happens in the event loop, with no thread held while a request waits; only what is large
is parsed and encoded elsewhere.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import TypeVar

import msgspec

from edge import openai_form
from edge.asked import Asked, submit_in_turn
from edge.errors import EdgeError
from edge.http_answer import (
    AGENT_FAILED,
    HttpAnswer,
    answer_from_error,
    json_error,
    packed,
    wrong_method,
)
from edge.http_handler import Cancel, Handler, Reply
from edge.http_request import HttpRequest
from edge.http_server import Loop
from edge.inbox import Answer, too_late
from edge.inference import LARGE_BYTES, Inference, Parse, is_light
from edge.pool import Pool
from edge.promise import Promise
from edge.replicas import Replicas
from edge.routes import TEST_HEADER, Kind, Route
from edge.served import ServedModel
from edge.spec import Feeds
from edge.tensor_bytes import held_bytes
from edge.traces import Stage, Traced, Traces

HELPERS = 2
_TEST = TEST_HEADER.lower().encode()

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


class Times(msgspec.Struct, frozen=True, kw_only=True):
    """When a request came, was parsed, had run, and was encoded; seconds on one clock."""

    started: float
    begun: float
    ended: float
    done: float

    def record(self, served: ServedModel, asked: Asked, answer: Answer, *, is_test: bool) -> None:
        """Count an answered request."""
        served.record_answer(
            answer,
            rows=asked.rows,
            parse_s=self.begun - self.started,
            encode_s=self.done - self.ended,
            total_s=self.done - self.started,
        )
        if served.drift is not None and not is_test:
            served.drift.observe(asked.parts[0], answer.outputs, asked.texts)

    def header(self, answer: Answer) -> str:
        """Return milliseconds by stage, as browsers and curl show them (W3C Server Timing)."""
        return ", ".join(
            f"{stage.name};dur={1e3 * (stage.end - stage.start):.3f}"
            for stage in self.stages(answer)
        )

    def stages(self, answer: Answer) -> tuple[Stage, ...]:
        """Return when it was read, waited, ran and was written."""
        ran = self.begun + answer.queue_s
        return (
            Stage(name="read", start=self.started, end=self.begun),
            Stage(name="queue", start=self.begun, end=ran),
            Stage(name="compute", start=ran, end=ran + answer.compute_s),
            Stage(name="write", start=self.ended, end=self.done),
        )


class InferHandler:
    """Answers inference in the event loop, and leaves every other request to `otherwise`."""

    def __init__(
        self,
        inference: Inference,
        loop: Loop,
        otherwise: Handler,
        *,
        traces: Traces | None = None,
    ) -> None:
        self.inference = inference
        self.loop = loop
        self.traces = traces
        self.helpers = Pool(HELPERS, "infer")
        self._otherwise = otherwise
        self._to_run: set[Replicas] = set()

    def run_soon(self, worker: Replicas) -> bool:
        """Run what waits at a worker when all that has arrived is in line, if that is quick."""
        if not worker.is_quick:
            return False
        if not self._to_run:
            self.loop.events.call_soon(self._run_quick)
        self._to_run.add(worker)
        return True

    def _run_quick(self) -> None:
        workers, self._to_run = self._to_run, set()
        for worker in workers:
            worker.run_here()

    def admit(self, method: str, path: str) -> HttpAnswer | None:
        """Refuse what needs no body to be refused: an unknown model, or a full one."""
        route = Route.of(path)
        if route is None or method != "POST":
            return self._otherwise.admit(method, path)
        if route.name is None:  # the body names it
            return None
        serving, served = self.inference.serving, None
        try:
            served = serving.served_model(route.name, route.version)
            served.places.check()
        except EdgeError as error:
            if served is not None:
                served.record_error(error.code, total_s=0.0)
            answer = answer_from_error(error)
            serving.metrics.record_response(answer.status)
            return answer
        return None

    def __call__(self, request: HttpRequest, reply: Reply) -> Cancel | None:
        """Begin to answer one request."""
        route = Route.of(request.path)
        if route is None:
            return self._otherwise(request, reply)
        started, serving = self.inference.clock(), self.inference.serving

        def send(answer: HttpAnswer) -> None:
            serving.metrics.record_response(answer.status)
            reply(packed(answer, request.header(b"accept-encoding")))

        if request.method != "POST":
            answer = wrong_method(request.method, request.path, "POST")
            send(openai_form.in_openai_form(answer) if route.kind == "embeddings" else answer)
            return None
        served = None
        try:
            to = self.inference.addressed(request, route)
            served = serving.served_model(to.name, to.version)
            while not served.places.take():  # it was replaced at this very moment
                served = serving.served_model(to.name, to.version)
        except EdgeError as error:
            if served is not None:
                served.record_error(error.code, total_s=0.0)
            send(_refusal(route.kind, error))
            return None
        call = _Call(self, route, served, request, send, started)
        call.begin(to.parse)
        return call.cancel

    def close(self) -> None:
        """Stop the helpers, once they have done what they do."""
        self.helpers.close()
        if self.traces is not None:
            self.traces.close()
        self._otherwise.close()


class _Call:
    """One request that has a place. It lives in the loop's thread; see `_elsewhere`."""

    def __init__(
        self,
        handler: InferHandler,
        route: Route,
        served: ServedModel,
        request: HttpRequest,
        send: Callable[[HttpAnswer], None],
        started: float,
    ) -> None:
        self._handler = handler
        self._inference = handler.inference
        self._loop = handler.loop
        self._route = route
        self._served = served
        self._request = request
        self._send = send
        self._started = self._begun = started
        self._is_over = False
        self._future: Promise[Answer] | None = None

    def begin(self, parse: Parse) -> None:
        """Parse, here or in a helper's thread, and submit."""
        if self._route.kind == "infer" and is_light(self._request, self._served.model):
            self._guarded(self._parse_and_submit, parse)
        else:
            self._elsewhere(functools.partial(parse, self._served), then=self._submit)

    def cancel(self) -> None:
        """Forget it: the client has gone."""
        if not self._is_over:
            self._served.record_error("cancelled", total_s=self._now() - self._started)
        self._end()
        if self._future is not None:
            self._future.cancel()

    def _parse_and_submit(self, parse: Parse) -> None:
        self._submit(parse(self._served))

    def _submit(self, asked: Asked) -> None:
        if self._is_over:
            return
        self._begun = self._now()
        deadline = self._started + self._inference.limit_s(self._request, asked)
        worker = self._served.worker

        def submit(feeds: Feeds) -> Promise[Answer]:
            is_here = self._loop.is_here and self._handler.run_soon(worker)
            return worker.submit(
                feeds, deadline=deadline, priority=asked.priority, wake=not is_here
            )

        future = self._future = submit_in_turn(asked.parts, submit)
        if future.done():
            self._finish(asked)
            return
        timer = self._loop.events.call_later(deadline - self._begun, self._expire)

        def finish() -> None:
            timer.cancel()
            self._guarded(self._finish, asked)

        future.add_done_callback(lambda _: self._loop.call(finish))

    def _finish(self, asked: Asked) -> None:
        if self._is_over or self._future is None:
            return
        try:
            answer = self._future.result()
        except CancelledError:
            return
        ended = self._now()
        size = sum(map(held_bytes, answer.outputs.values()))
        if size <= LARGE_BYTES:
            self._succeed(asked, answer, ended, asked.encode(answer.outputs))
        else:
            self._elsewhere(
                functools.partial(asked.encode, answer.outputs),
                then=functools.partial(self._succeed, asked, answer, ended),
            )

    def _succeed(self, asked: Asked, answer: Answer, ended: float, encoded: HttpAnswer) -> None:
        if self._is_over:
            return
        self._end()
        times = Times(started=self._started, begun=self._begun, ended=ended, done=self._now())
        times.record(self._served, asked, answer, is_test=_TEST in self._request.headers)
        if self._route.kind == "predict":
            encoded.headers["Server-Timing"] = times.header(answer)
        self._trace(encoded.status, times.stages(answer), end=times.done)
        self._send(encoded)

    def _expire(self) -> None:
        if self._future is not None and not self._is_over:
            self._future.cancel()
            self._fail(too_late(self._served.model.name))

    def _fail(self, error: Exception) -> None:
        if self._is_over:
            return
        self._end()
        code = "error"
        if isinstance(error, EdgeError):
            code = error.code
        else:
            logger.error("request failed path=%s", self._request.path, exc_info=error)
        now, answer = self._now(), _refusal(self._route.kind, error)
        self._served.record_error(code, total_s=now - self._started)
        self._trace(answer.status, (), end=now, error=code)
        self._send(answer)

    def _trace(
        self, status: int, stages: tuple[Stage, ...], *, end: float, error: str | None = None
    ) -> None:
        if self._handler.traces is None:
            return
        model = self._served.model
        traced = Traced(
            name=self._route.kind,
            model=model.name,
            version=model.version,
            status=status,
            error=error,
            start=self._started,
            end=end,
            stages=stages,
        )
        self._handler.traces.record(self._request, traced)

    def _end(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._served.places.give_back()

    def _elsewhere(self, work: Callable[[], _T], *, then: Callable[[_T], None]) -> None:
        """Do what takes long in a helper's thread, and go on with its result in the loop's."""

        def run() -> None:
            try:
                result = work()
            except Exception as error:  # noqa: BLE001 - as in _guarded
                self._loop.call(self._fail, error)
            else:
                self._loop.call(self._guarded, then, result)

        self._handler.helpers.submit(run)

    def _guarded(self, step: Callable[[_T], None], argument: _T) -> None:
        try:
            step(argument)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer
            self._fail(error)

    def _now(self) -> float:
        return self._inference.clock()


def _refusal(kind: Kind, error: Exception) -> HttpAnswer:
    """Return the answer for an error, in the form that the clients of this path read."""
    if isinstance(error, EdgeError):
        return openai_form.error_answer(error) if kind == "embeddings" else answer_from_error(error)
    answer = json_error(500, AGENT_FAILED)
    return openai_form.in_openai_form(answer) if kind == "embeddings" else answer
