"""What the agent serves now: the bundle, its opened models, and the phase of its life.

The agent's main thread writes here, HTTP threads read. Every attribute is replaced as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edge import manifest
from edge.bundle import Bundle
from edge.choice import Choice, promises_gpu
from edge.errors import NotReadyError, UnknownModelError
from edge.inbox import Answer
from edge.latency import LatencyWindow
from edge.metrics import Metrics, ModelMetrics, ModelState, State
from edge.probes import Sample
from edge.self_test import SelfTest
from edge.statistics import ModelStatistics
from edge.target import Target
from edge.worker import Worker

Phase = Literal["starting", "serving", "stopping"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """An opened model that passed its self-test, with what is known about it."""

    model: manifest.Model
    choice: Choice
    self_test: SelfTest
    worker: Worker
    metrics: ModelMetrics
    latency: LatencyWindow
    statistics: ModelStatistics

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

    def record_answer(
        self, answer: Answer, *, rows: int, parse_s: float, encode_s: float, total_s: float
    ) -> None:
        """Count one answered request of so many rows."""
        times = {"queue_s": answer.queue_s, "compute_s": answer.compute_s, "total_s": total_s}
        self.statistics.record_answer(
            rows=rows,
            parse_s=parse_s,
            queue_s=answer.queue_s,
            compute_s=answer.compute_s,
            encode_s=encode_s,
        )
        self.metrics.record_answer(**times)
        self.latency.record(**times)


class Serving:
    """The state that HTTP threads see."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        started: float,
        allow_unsigned: bool,
        ready_on_cpu: bool = False,
    ) -> None:
        self.bundle = bundle
        self.started = started
        self.allow_unsigned = allow_unsigned
        self.ready_on_cpu = ready_on_cpu
        self.phase: Phase = "starting"
        self.activity = ""  # what the loader does now, in words
        self.target: Target | None = None
        self.sample = Sample()
        self.served: dict[str, ServedModel] = {}
        self.metrics = Metrics(self._state)

    @property
    def is_ready(self) -> bool:
        """Whether every model of the bundle is open, passed its self-test and works."""
        return self.phase == "serving" and all(map(self._works, self.served.values()))

    def is_model_ready(self, name: str) -> bool:
        """Whether this model can answer; readiness of the others does not matter."""
        served = self.served.get(name)
        return self.phase == "serving" and served is not None and self._works(served)

    @property
    def condition(self) -> str:
        """Why the agent is not ready, in words; meaningless while it is."""
        if self.phase != "serving":
            return f"the agent is {self.phase}" + (f", {self.activity}" if self.activity else "")
        degraded = [served.degradation for served in self.served.values()]
        if not all(served.worker.is_ready for served in self.served.values()):
            return "the agent is failing"
        return "; ".join(filter(None, degraded)) or "the agent is failing"

    def _works(self, served: ServedModel) -> bool:
        is_kept = self.ready_on_cpu or served.degradation is None
        return served.worker.is_ready and is_kept

    def model(self, name: str, version: str | None) -> manifest.Model:
        """Return the model with this name, of this version if one is given.

        Raises UnknownModelError.
        """
        models = self.bundle.manifest.models
        model = next((model for model in models if model.name == name), None)
        if model is None:
            names = ", ".join(repr(model.name) for model in models)
            raise UnknownModelError(f"model {name!r} is unknown; this bundle has {names}")
        if version not in {None, model.version}:
            raise UnknownModelError(
                f"model {name!r} has no version {version!r}; this bundle has {model.version!r}"
            )
        return model

    def served_model(self, name: str, version: str | None) -> ServedModel:
        """Return an opened model; raises UnknownModelError, or NotReadyError while it opens."""
        model = self.model(name, version)
        served = self.served.get(model.name)
        if served is None:
            raise NotReadyError(
                f"model {name!r} is still opening; wait until /v2/health/ready answers 200"
            )
        return served

    def _state(self) -> State:
        return State(
            bundle=self.bundle.manifest.name,
            signed=self.bundle.signed_by is not None,
            sample=self.sample,
            models=tuple(
                ModelState(
                    model=served.model.name,
                    version=served.model.version,
                    variant=served.choice.variant.id,
                    backend=served.choice.variant.backend,
                    on_gpu=served.choice.on_gpu,
                    queue_depth=served.worker.queue_depth,
                    statistics=served.statistics,
                )
                for served in self.served.values()
            ),
        )
