"""What a request asks of a model: the seam between the forms of requests and who runs them.

Each form (tensors, images, texts, embeddings) is a function from a request's bytes to `Asked`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np

from edge.errors import EdgeError
from edge.http_answer import HttpAnswer
from edge.inbox import Answer
from edge.oip import NORMAL_PRIORITY
from edge.promise import Promise
from edge.spec import AnyArray, Feeds

MAX_PARTS = 64

Encode = Callable[[Mapping[str, AnyArray]], HttpAnswer]
Submit = Callable[[Feeds], "Promise[Answer]"]


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """Feeds, and what makes the answer of their outputs.

    parts: what the model takes at once, 1..MAX_PARTS times; encode gets the rows of all parts in
    their order, and raises EdgeError for what it cannot write. timeout_s: how long the client
    waits, None if it does not say. priority: see `inbox`. texts: that the rows of the first part
    were, None where tensors were sent.
    """

    parts: tuple[Feeds, ...]
    encode: Encode
    timeout_s: float | None = None
    priority: int = NORMAL_PRIORITY
    texts: tuple[str, ...] | None = None

    @property
    def rows(self) -> int:
        """Size of the first axis of the first input, over all parts."""
        shapes = [next(iter(feeds.values())).shape for feeds in self.parts]
        return sum(shape[0] if shape else 1 for shape in shapes)


def submit_in_turn(parts: Sequence[Feeds], submit: Submit) -> Promise[Answer]:
    """Return the answer to all parts, each submitted when the one before it is answered.

    One part at a time waits with the requests of others, so that a long request keeps nobody
    waiting longer than a short one. The answer has the rows of those outputs whose rows have one
    shape in all parts, and the times of all parts together. Cancelling it cancels the rest; the
    first error ends it. Raises what submitting the first part raises.
    """
    first = submit(parts[0])
    if len(parts) == 1:
        return first
    whole: Promise[Answer] = Promise()
    _continue(whole, parts, submit, (), first)
    return whole


def _continue(
    whole: Promise[Answer],
    parts: Sequence[Feeds],
    submit: Submit,
    done: tuple[Answer, ...],
    current: Promise[Answer],
) -> None:
    whole.add_done_callback(lambda _: current.cancel())
    current.add_done_callback(functools.partial(_step, whole, parts, submit, done))


def _step(
    whole: Promise[Answer],
    parts: Sequence[Feeds],
    submit: Submit,
    done: tuple[Answer, ...],
    current: Promise[Answer],
) -> None:
    """Take one answer and go on; runs where it was made, in the thread of a worker."""
    if whole.done():
        return
    error = None if current.cancelled() else current.exception()
    if current.cancelled():
        whole.cancel()
    elif error is not None:
        _end(whole, error)
    else:
        done = (*done, current.result())
        if len(done) == len(parts):
            _end(whole, _joined(done))
            return
        try:
            following = submit(parts[len(done)])
        except EdgeError as refusal:
            _end(whole, refusal)
            return
        _continue(whole, parts, submit, done, following)


def _end(whole: Promise[Answer], result: Answer | BaseException) -> None:
    if not whole.set_running_or_notify_cancel():
        return
    if isinstance(result, BaseException):
        whole.set_exception(result)
    else:
        whole.set_result(result)


def _joined(answers: Sequence[Answer]) -> Answer:
    outputs = {}
    for name in answers[0].outputs:
        rows = [answer.outputs[name] for answer in answers]
        if len({array.shape[1:] for array in rows}) == 1 and rows[0].ndim:
            outputs[name] = np.concatenate(rows)
    return Answer(
        outputs=outputs,
        queue_s=sum(answer.queue_s for answer in answers),
        compute_s=sum(answer.compute_s for answer in answers),
        batch_rows=max(answer.batch_rows for answer in answers),
    )
