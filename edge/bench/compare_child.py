"""One row of a comparison in a process of its own, so that its memory is its own.

Reads a Task on the first line of standard input and answers with Facts; then it runs what each
further line, a Turn, asks for, and answers with the milliseconds of every run. All of it is JSON.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import psutil

from edge.bench.feeds import golden_feeds
from edge.bench.framework import open_in_framework
from edge.bench.opened import model_in, open_model, reader, verified_bundle
from edge.bundle import Bundle
from edge.config import AgentConfig
from edge.cuda_query import free_memory_bytes
from edge.errors import EdgeError
from edge.manifest import Model
from edge.self_test import relative_error, tensor_from_golden
from edge.spec import AnyArray, Feeds

WARM_UP_RUNS = 5  # TensorRT captures a graph in the third
MIN_RUNS = 3

Run = Callable[[Feeds], dict[str, AnyArray]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What to open: the variant that config forces, or the original of it in its framework.

    largest: rows of the largest run, with which memory is measured.
    """

    config: AgentConfig
    model: str
    largest: int
    framework: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Run so many rows for so long."""

    rows: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was opened, or in `error` why not.

    relative_error: the worst over the golden set. rss_bytes, device_bytes: of this process, and of
    the GPU since it began, after the largest run; None where nobody tells.
    """

    error: str | None = None
    code: str | None = None
    on_gpu: bool = False
    relative_error: float = 0.0
    rss_bytes: int = 0
    device_bytes: int | None = None


def main() -> None:
    """Serve the parent until it closes standard input."""
    # Libraries print as they like; what is an answer goes where standard output went before.
    with os.fdopen(os.dup(1), "wb", buffering=0) as answers:
        os.dup2(2, 1)

        def tell(value: object) -> None:
            answers.write(msgspec.json.encode(value) + b"\n")

        task = msgspec.json.decode(
            sys.stdin.buffer.readline(), type=Task, dec_hook=lambda kind, text: kind(text)
        )
        try:
            _serve(task, tell)
        except EdgeError as error:
            tell(Facts(error=str(error), code=error.code))


def _serve(task: Task, tell: Callable[[object], None]) -> None:
    free = free_memory_bytes()
    bundle = verified_bundle(task.config)
    model = model_in(bundle, task.model)
    run, on_gpu = _opened(task, bundle, model)
    worst = _worst_error(bundle, model, run)
    feeds: dict[int, Feeds] = {}
    run(_feeds(bundle, model, task.largest, feeds))
    left = free_memory_bytes() if free is not None and on_gpu else None
    tell(
        Facts(
            on_gpu=on_gpu,
            relative_error=worst,
            rss_bytes=psutil.Process().memory_info().rss,
            device_bytes=None if free is None or left is None else max(0, free - left),
        )
    )
    warm: set[int] = set()
    for line in sys.stdin.buffer:
        turn = msgspec.json.decode(line, type=Turn)
        shaped = _feeds(bundle, model, turn.rows, feeds)
        for _ in range(1 if turn.rows in warm else WARM_UP_RUNS):
            run(shaped)
        warm.add(turn.rows)
        tell(_timed(run, shaped, turn.seconds))


def _opened(task: Task, bundle: Bundle, model: Model) -> tuple[Run, bool]:
    if task.framework is not None:
        threads = task.config.intra_op_threads
        original = open_in_framework(task.framework, model.inputs, model.outputs, threads)
        return original.run, original.on_gpu
    opened = open_model(bundle, model, task.config)
    return opened.session.run, opened.choice.on_gpu


def _worst_error(bundle: Bundle, model: Model, run: Run) -> float:
    read, worst = reader(bundle), 0.0
    for case in model.golden.cases:
        outputs = run({tensor.name: tensor_from_golden(tensor, read) for tensor in case.inputs})
        for tensor in case.outputs:
            golden = tensor_from_golden(tensor, read)
            worst = max(worst, relative_error(outputs[tensor.name], golden))
    return worst


def _feeds(bundle: Bundle, model: Model, rows: int, known: dict[int, Feeds]) -> Feeds:
    if rows not in known:
        known[rows] = golden_feeds(model, reader(bundle), rows=rows)
    return known[rows]


def _timed(run: Run, feeds: Feeds, seconds: float) -> list[float]:
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < MIN_RUNS or time.perf_counter() - begun < seconds:
        started = time.perf_counter()
        run(feeds)
        times.append(1e3 * (time.perf_counter() - started))
    return times


if __name__ == "__main__":
    main()
