"""The table every user wants: original, fp32, fp16 and int8 side by side on this device.

Every row is a process of its own (see `compare_child`); their runs alternate, so that whatever
disturbs the machine disturbs all of them alike.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import msgspec

from edge.bench.compare_child import Facts, Task, Turn
from edge.bench.opened import model_in, verified_bundle
from edge.bench.table import mebibytes, number, table, wrapped
from edge.config import AgentConfig
from edge.errors import InferenceError, UsageError
from edge.latency import Latency, latency_from_seconds
from edge.manifest import Accuracy, Model, Precision

ROUNDS = 5
FRAMEWORK = "original"
STOP_S = 30.0

_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Runs of so many rows, one after the other."""

    rows: int
    latency: Latency
    rows_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One way to run the model. error: why it cannot be run here; the rest is empty then.

    relative_error: the worst over the golden set, against fp32. top1_percent, cosine_mean: as
    measured when the model was quantized, on samples that calibration never saw.
    """

    name: str
    precision: Precision | None
    error: str | None = None
    on_gpu: bool = False
    rss_bytes: int | None = None
    device_bytes: int | None = None
    speeds: tuple[Speed, ...] = ()
    relative_error: float | None = None
    top1_percent: float | None = None
    cosine_mean: float | None = None

    @property
    def memory_bytes(self) -> int | None:
        """Host and device memory together."""
        return None if self.rss_bytes is None else self.rss_bytes + (self.device_bytes or 0)


def compare(
    config: AgentConfig,
    *,
    model: str | None,
    framework: str | None,
    seconds: float,
    say: Callable[[str], object],
) -> tuple[Row, ...]:
    """Return a row for the original, where framework names it, and one for each variant.

    seconds: for each row and batch size. Raises InferenceError if nothing could be run, and what
    `verified_bundle` and `model_in` raise.
    """
    if config.variant is not None:
        raise UsageError("--compare measures every variant; leave out --variant")
    found = model_in(verified_bundle(config), model)
    largest = max(1, found.max_batch_size)
    sizes = sorted({1, largest})
    order: dict[Precision, int] = {"fp32": 0, "fp16": 1, "int8": 2}
    variants = sorted(found.variants, key=lambda variant: order[variant.precision])
    tasks: dict[str, Task] = {}
    if framework is not None:
        tasks[FRAMEWORK] = Task(
            config=config, model=found.name, largest=largest, framework=framework
        )
    for variant in variants:
        forced = replace(config, variant=variant.id)
        tasks[variant.id] = Task(config=forced, model=found.name, largest=largest)
    precisions: dict[str, Precision] = {variant.id: variant.precision for variant in variants}
    times: dict[tuple[str, int], list[float]] = {}
    facts: dict[str, Facts] = {}
    with contextlib.ExitStack() as stack:
        children: dict[str, _Child] = {}
        for name, task in tasks.items():
            say(f"opening {name}")
            child = stack.enter_context(_child(task))
            facts[name] = child.answer(Facts)
            if facts[name].error is None:
                children[name] = child
        for number_of_round in range(ROUNDS):
            say(f"round {number_of_round + 1} of {ROUNDS}")
            for rows in sizes:
                for name, child in children.items():
                    child.ask(Turn(rows=rows, seconds=seconds / ROUNDS))
                    times.setdefault((name, rows), []).extend(child.answer(list[float]))
    if not children:
        reasons = "; ".join(f"{name}: {fact.error}" for name, fact in facts.items())
        raise InferenceError(f"nothing of model {found.name!r} can be run here: {reasons}")
    return tuple(_row(name, fact, precisions.get(name), times, found) for name, fact in
                 facts.items())  # fmt: skip


def compare_tables(rows: tuple[Row, ...]) -> str:
    """Return the numbers, then their ratios to the first row that ran, in 80 columns."""
    ran = [row for row in rows if row.error is None]
    sizes = [speed.rows for speed in ran[0].speeds]
    headings = ["", "on", "RSS\nMiB", "GPU\nMiB"]
    for size in sizes:
        headings += [f"batch {size}\np50 ms", "\np99 ms", "\nrows/s"]
    cells = []
    for row in ran:
        line = [row.name, "GPU" if row.on_gpu else "CPU", mebibytes(row.rss_bytes),
                mebibytes(row.device_bytes)]  # fmt: skip
        for speed in row.speeds:
            line += [
                number(speed.latency.p50_ms),
                number(speed.latency.p99_ms),
                number(speed.rows_per_s),
            ]
        cells.append(line)
    first = ran[0]
    ratios = [
        [
            row.name,
            _ratio(row.memory_bytes, first.memory_bytes),
            *(
                _ratio(mine.rows_per_s, theirs.rows_per_s)
                for mine, theirs in zip(row.speeds, first.speeds, strict=True)
            ),
            "-" if row.relative_error is None else f"{row.relative_error:.1e}",
            "-" if row.top1_percent is None else f"{row.top1_percent:.2f}%",
            "-" if row.cosine_mean is None else f"{row.cosine_mean:.4f}",
        ]
        for row in ran
    ]
    second = table(
        [f"times {first.name}", "memory", *(f"rows/s\nbatch {size}" for size in sizes),
         "error on\ngolden set", "top-1", "cosine"],
        ratios,
    )  # fmt: skip
    refused = "\n".join(
        wrapped(f"{row.name} was not run: {row.error}", indent="  ") for row in rows if row.error
    )
    return "\n\n".join(filter(None, (table(headings, cells), second, refused)))


class _Child:
    def __init__(self, name: str, process: subprocess.Popen[bytes]) -> None:
        self._name = name
        self._process = process

    def ask(self, value: object) -> None:
        assert self._process.stdin is not None  # noqa: S101 - it is a pipe
        try:
            self._process.stdin.write(msgspec.json.encode(value, enc_hook=str) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the missing answer says so

    def answer(self, kind: type[_Answer]) -> _Answer:
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        line = self._process.stdout.readline()
        if line:
            return msgspec.json.decode(line, type=kind)
        status = self._process.wait()
        if kind is Facts:
            return Facts(error=f"its process ended with {status}", code="crashed")  # type: ignore[return-value]
        raise InferenceError(f"{self._name}: its process ended with {status} during a run")


@contextlib.contextmanager
def _child(task: Task) -> Iterator[_Child]:
    name = task.framework or str(task.config.variant)
    command = [sys.executable, "-m", "edge.bench.compare_child"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        child = _Child(name, process)
        try:
            child.ask(task)
            yield child
        finally:
            assert process.stdin is not None  # noqa: S101
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _row(
    name: str,
    facts: Facts,
    precision: Precision | None,
    times: dict[tuple[str, int], list[float]],
    model: Model,
) -> Row:
    if facts.error is not None:
        return Row(name=name, precision=precision, error=facts.error)
    return Row(
        name=name,
        precision=precision,
        on_gpu=facts.on_gpu,
        rss_bytes=facts.rss_bytes,
        device_bytes=facts.device_bytes,
        speeds=tuple(_speed(rows, each) for (owner, rows), each in times.items() if owner == name),
        relative_error=facts.relative_error,
        top1_percent=_top1(model.accuracy, precision),
        cosine_mean=None
        if model.accuracy is None or precision != "int8"
        else model.accuracy.cosine_mean,
    )


def _speed(rows: int, times_ms: Sequence[float]) -> Speed:
    seconds = [ms / 1e3 for ms in times_ms]
    return Speed(
        rows=rows,
        latency=latency_from_seconds(seconds),
        rows_per_s=rows * len(seconds) / sum(seconds),
    )


def _top1(accuracy: Accuracy | None, precision: Precision | None) -> float | None:
    if accuracy is None:
        return None
    if precision == "int8":
        return accuracy.int8_top1_percent
    return accuracy.fp32_top1_percent if precision == "fp32" else None


def _ratio(mine: float | None, first: float | None) -> str:
    return "-" if mine is None or not first else f"{mine / first:.2f}x"
