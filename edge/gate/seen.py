"""What the gate reads of /telemetry: only what it needs, and nothing it trusts."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from edge.errors import EdgeError, InferenceError
from edge.http_client import AgentClient

_Bytes = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
# Outcomes that are the bundle's or the device's fault, not a client's or a full line's.
FAULTS = ("inference", "error", "deadline", "stalled")


class SeenBundle(msgspec.Struct, frozen=True):
    """The bundle that answers."""

    name: str
    version: str
    manifest_sha256: str


class SeenModel(msgspec.Struct, frozen=True):
    """One model that answers."""

    name: str
    variant: str
    means: str
    ready: bool
    requests: dict[str, _Bytes] = {}
    degradation: str | None = None
    memory_bytes: _Bytes | None = None
    takes: Literal["image", "text", "chat", "tensors"] = "tensors"


class SeenGpu(msgspec.Struct, frozen=True):
    """One GPU."""

    own_memory_bytes: _Bytes | None = None
    utilization_percent: Annotated[float, msgspec.Meta(ge=0.0, le=100.0)] | None = None


class SeenMachine(msgspec.Struct, frozen=True):
    """The machine."""

    rss_bytes: _Bytes | None = None
    gpus: tuple[SeenGpu, ...] = ()


class Seen(msgspec.Struct, frozen=True):
    """An agent as it described itself at one moment."""

    uptime_s: float
    phase: str
    ready: bool
    bundle: SeenBundle
    models: tuple[SeenModel, ...]
    machine: SeenMachine
    activity: str = ""
    condition: str | None = None

    @property
    def memory_bytes(self) -> int | None:
        """What the agent's process and its GPUs hold; None if it cannot tell."""
        if self.machine.rss_bytes is None:
            return None
        return self.machine.rss_bytes + sum(g.own_memory_bytes or 0 for g in self.machine.gpus)

    @property
    def gpu_memory_bytes(self) -> int | None:
        """What the agent holds on its GPUs; None where that is not told by process (a Jetson)."""
        known = [g.own_memory_bytes for g in self.machine.gpus if g.own_memory_bytes is not None]
        return sum(known) if known else None

    @property
    def gpu_load_percent(self) -> float | None:
        """The load of the busiest GPU, whoever caused it; None if it cannot be told."""
        loads = [g.utilization_percent for g in self.machine.gpus]
        return max((load for load in loads if load is not None), default=None)

    def requests(self) -> tuple[int, int]:
        """Return how many requests were answered, and how many failed by no client's fault."""
        counts = [model.requests for model in self.models]
        answered = sum(count.get("ok", 0) for count in counts)
        return answered, sum(count.get(code, 0) for count in counts for code in FAULTS)


_SEEN = msgspec.json.Decoder(Seen)


def look(client: AgentClient) -> Seen:
    """Return what the agent says of itself now.

    Raises NoAgentError if nobody answers, InferenceError for an answer that is none.
    """
    received = client.send("GET", "/telemetry")
    if received.status != 200:
        raise InferenceError(f"/telemetry answers {received.status}")
    try:
        return _SEEN.decode(received.body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise InferenceError(f"/telemetry cannot be read: {error}") from error


def looked(client: AgentClient) -> Seen | EdgeError:
    """Return what the agent says of itself, or why it does not."""
    try:
        return look(client)
    except EdgeError as error:
        return error
