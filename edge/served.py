"""An opened model, with everything that belongs to it while it is served."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

from edge import manifest
from edge.bundle import Bundle
from edge.chat.chat_model import ChatModel
from edge.chat.generation import End
from edge.chat.generator import Generator
from edge.choice import Choice, promises_gpu
from edge.drift.watch import DriftWatch
from edge.inbox import Answer
from edge.latency import LatencyWindow
from edge.metrics import ModelMetrics
from edge.places import Places
from edge.replicas import Replicas
from edge.self_test import SelfTest
from edge.statistics import ModelStatistics
from edge.text import Tokenizer


class Runner(Protocol):
    """What runs a model, as far as those must know who only watch it, or end it."""

    @property
    def is_ready(self) -> bool:
        """Whether it works."""

    @property
    def queue_depth(self) -> int:
        """How many requests wait for it."""

    def is_stalled(self, now: float) -> bool:
        """Whether it hangs."""

    def stop(self, timeout_s: float) -> bool:
        """Finish what has begun and close the model; False if it is still busy at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served(ABC):
    """An opened model that passed its self-test, with what is known about it.

    bundle: where it came from. memory_bytes: what opening it took, of a GPU if it runs there,
    else of the host; None if that could not be told. drift: what compares its requests with those
    it was packed with; None without a reference in the bundle.
    """

    model: manifest.Model
    bundle: Bundle
    choice: Choice
    self_test: SelfTest
    places: Places
    memory_bytes: int | None = None
    drift: DriftWatch | None = None
    metrics: ModelMetrics
    latency: LatencyWindow
    statistics: ModelStatistics

    @property
    @abstractmethod
    def runner(self) -> Runner:
        """What runs it."""

    @property
    def degradation(self) -> str | None:
        """What was promised and is not kept: a model packed for a GPU runs on the CPU."""
        if self.choice.on_gpu or not promises_gpu(self.model):
            return None
        return (
            f"model {self.model.name!r} was packed for a GPU and runs on the CPU; /telemetry says "
            "why, ready_on_cpu accepts it"
        )

    def record_error(self, code: str, *, total_s: float) -> None:
        """Count one request that ended with an error."""
        self.metrics.record_error(code)
        self.statistics.record_failure(code, total_s)

    def _record(
        self,
        *,
        rows: int,
        parse_s: float,
        queue_s: float,
        compute_s: float,
        encode_s: float,
        total_s: float,
    ) -> None:
        self.statistics.record_answer(
            rows=rows, parse_s=parse_s, queue_s=queue_s, compute_s=compute_s, encode_s=encode_s
        )
        for record in (self.metrics.record_answer, self.latency.record):
            record(queue_s=queue_s, compute_s=compute_s, total_s=total_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel(Served):
    """A model of tensors. tokenizer: of one that takes texts, None if it could not be opened."""

    worker: Replicas
    tokenizer: Tokenizer | None = None

    @property
    def runner(self) -> Runner:
        """What runs it."""
        return self.worker

    def record_answer(
        self, answer: Answer, *, rows: int, parse_s: float, encode_s: float, total_s: float
    ) -> None:
        """Count one answered request of so many rows."""
        self._record(
            rows=rows,
            parse_s=parse_s,
            queue_s=answer.queue_s,
            compute_s=answer.compute_s,
            encode_s=encode_s,
            total_s=total_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedChat(Served):
    """A model that talks. talker: between requests and tokens."""

    generator: Generator
    talker: ChatModel

    @property
    def runner(self) -> Runner:
        """What runs it."""
        return self.generator

    def record_end(self, end: End, *, parse_s: float) -> None:
        """Count one generation that has come to its end."""
        queue_s = end.total_s if end.queue_s is None else end.queue_s
        self._record(
            rows=1,
            parse_s=parse_s,
            queue_s=queue_s,
            compute_s=end.total_s - queue_s,
            encode_s=0.0,
            total_s=parse_s + end.total_s,
        )
