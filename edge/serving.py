"""What the agent serves now: the bundle, its opened models, and the phase of its life.

The agent's main thread and its repository write here, HTTP threads read. Every attribute is
replaced as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from edge import manifest
from edge.alarms import Told
from edge.bundle import Bundle
from edge.chat_metrics import ChatState
from edge.drift.watch import DriftReport
from edge.errors import InputError, NotReadyError, UnknownModelError
from edge.history.history import History
from edge.log_tail import LogTail
from edge.metrics import Metrics, ModelState, State
from edge.probes.sample import Sample
from edge.served import Served, ServedChat, ServedModel
from edge.slots.watching import SlotFacts
from edge.statistics import ModelStatistics
from edge.target import Target
from edge.update.status import PassStatus

# "failed": no model of a bundle on trial could be opened; it waits for the verdict.
Phase = Literal["starting", "serving", "stopping", "failed"]
Change = Literal["LOADING", "UNLOADING", "UNAVAILABLE"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What happens, or happened last, to a model, and the reason in words."""

    change: Change
    reason: str


class Serving:
    """The state that HTTP threads see.

    wanted: names of the models that must work for the agent to be ready; None is all. history: of
    the last day; None keeps one in memory. slots: what slot is served, None without slots.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        started: float,
        allow_unsigned: bool,
        ready_on_cpu: bool = False,
        wanted: tuple[str, ...] | None = None,
        history: History | None = None,
        slots: Callable[[], SlotFacts | None] = lambda: None,
        update: Callable[[], PassStatus | None] = lambda: None,
    ) -> None:
        self.bundle = bundle
        self.started = started
        self.allow_unsigned = allow_unsigned
        self.ready_on_cpu = ready_on_cpu
        self.phase: Phase = "starting"
        self.activity = ""  # what the loader does now, in words
        self.target: Target | None = None
        self.sample = Sample()
        self.alarms: tuple[Told, ...] = ()
        self.joules_per_request: float | None = None
        self.history = History.open(None) if history is None else history
        self.slots = slots
        self.update = update
        self.log = LogTail()
        self.on_drift: Callable[[str, DriftReport], None] = lambda model, report: None
        self.served: dict[str, Served] = {}
        self.notes: dict[str, Note] = {}
        self._statistics: dict[str, ModelStatistics] = {}
        self.wanted = tuple(m.name for m in bundle.manifest.models) if wanted is None else wanted
        self.metrics = Metrics(self._state)

    @property
    def is_ready(self) -> bool:
        """Whether every wanted model is open, passed its self-test and works."""
        return self.phase == "serving" and all(map(self.is_model_ready, self.wanted))

    def is_model_ready(self, name: str) -> bool:
        """Whether this model can answer; readiness of the others does not matter."""
        served = self.served.get(name)
        return self.phase == "serving" and served is not None and self._works(served)

    @property
    def condition(self) -> str:
        """Why the agent is not ready, in words; meaningless while it is."""
        if self.phase == "failed":
            return f"the bundle cannot be served: {self.activity}"
        if self.phase != "serving":
            return f"the agent is {self.phase}" + (f", {self.activity}" if self.activity else "")
        return "; ".join(
            self.model_condition(name) for name in self.wanted if not self.is_model_ready(name)
        )

    def model_condition(self, name: str) -> str:
        """Why a model is not ready, in words; meaningless while it is."""
        served = self.served.get(name)
        if self.phase != "serving":
            return self.condition
        if served is None:
            note = self.notes.get(name)
            return f"model {name!r} is not loaded" if note is None else note.reason
        if not served.runner.is_ready:
            return f"model {name!r} is failing"
        return served.degradation or f"model {name!r} is ready"

    def _works(self, served: Served) -> bool:
        is_kept = self.ready_on_cpu or served.degradation is None
        return served.runner.is_ready and is_kept

    @property
    def models(self) -> tuple[manifest.Model, ...]:
        """Every model that is served, and those of the bundle that are not."""
        served = tuple(one.model for one in self.served.values())
        others = (m for m in self.bundle.manifest.models if m.name not in self.served)
        return (*served, *others)

    def model(self, name: str, version: str | None) -> manifest.Model:
        """Return the model with this name, of this version if one is given.

        Raises UnknownModelError.
        """
        model = next((model for model in self.models if model.name == name), None)
        if model is None:
            names = ", ".join(repr(model.name) for model in self.models)
            raise UnknownModelError(f"model {name!r} is unknown; this bundle has {names}")
        if version not in {None, model.version}:
            raise UnknownModelError(
                f"model {name!r} has no version {version!r}; this bundle has {model.version!r}"
            )
        return model

    def opened(self, name: str, version: str | None) -> Served:
        """Return an opened model; raises UnknownModelError, or NotReadyError while it is not."""
        served = self.served.get(name)
        if served is None or version not in {None, served.model.version}:
            self.model(name, version)
            raise NotReadyError(
                f"{self.model_condition(name)}; wait until /v2/models/{name}/ready answers 200"
            )
        return served

    def served_model(self, name: str, version: str | None) -> ServedModel:
        """Return an opened model that takes tensors; raises as `opened`, InputError for others."""
        served = self.opened(name, version)
        if not isinstance(served, ServedModel):
            raise InputError(
                f"model {name!r} is a chat model: it takes no tensors; ask it at "
                "/v1/chat/completions, or at /chat"
            )
        return served

    def served_chat(self, name: str) -> ServedChat:
        """Return an opened chat model; raises as `opened`, InputError for others."""
        served = self.opened(name, None)
        if not isinstance(served, ServedChat):
            raise InputError(
                f"model {name!r} is no chat model; GET /v2/models/{name} says what it takes"
            )
        return served

    def statistics_of(self, name: str) -> ModelStatistics:
        """Return the counters of a model; they go on when it is loaded anew."""
        return self._statistics.setdefault(name, ModelStatistics())

    def drifts(self) -> Iterator[tuple[str, DriftReport]]:
        """Yield every model that is watched for drift, and what is known of it."""
        for name, served in self.served.items():
            if served.drift is not None:
                yield name, served.drift.report

    def want(self, name: str, *, wanted: bool = True) -> None:
        """Say whether the agent is ready only if this model works."""
        others = tuple(other for other in self.wanted if other != name)
        self.wanted = (*others, name) if wanted else others

    def note(self, name: str, change: Change, reason: str) -> None:
        """Say what happens to a model."""
        self.notes = {**self.notes, name: Note(change=change, reason=reason)}

    def put(self, served: Served) -> None:
        """Serve an opened model from now on, in place of an older one of its name."""
        name = served.model.name
        self.served = {**self.served, name: served}
        self.notes = {key: note for key, note in self.notes.items() if key != name}

    def take_out(self, name: str) -> Served:
        """Serve a model no longer; raises UnknownModelError, or NotReadyError if it is not open."""
        served = self.opened(name, None)
        self.served = {key: one for key, one in self.served.items() if key != name}
        return served

    def _state(self) -> State:
        return State(
            bundle=self.bundle.manifest.name,
            signed=self.bundle.signed_by is not None,
            sample=self.sample,
            alarms=self.alarms,
            slots=self.slots(),
            update=self.update(),
            models=tuple(
                ModelState(
                    model=served.model.name,
                    version=served.model.version,
                    variant=served.choice.variant.id,
                    backend=served.choice.variant.backend,
                    on_gpu=served.choice.on_gpu,
                    queue_depth=served.runner.queue_depth,
                    statistics=served.statistics,
                    drift=None if served.drift is None else served.drift.report,
                )
                for served in self.served.values()
            ),
            chats=tuple(
                ChatState(
                    model=served.model.name,
                    lanes=served.generator.lanes,
                    running=served.generator.running,
                    waiting=served.generator.waiting,
                    cache_use=served.generator.cache_use,
                    counters=served.generator.counters,
                )
                for served in self.served.values()
                if isinstance(served, ServedChat)
            ),
        )
