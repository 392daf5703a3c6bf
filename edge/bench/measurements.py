"""What `bench` and `profile` measure, as plain values: for `advice`, and for `--json`."""

from __future__ import annotations

from dataclasses import dataclass

from edge.latency import Latency
from edge.manifest import Backend, Measurement, Precision

MIN_SHARE = 0.1  # of time or requests: below it nothing is worth a word


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """Runs of the engine with so many rows, and the mean time of one."""

    rows: int
    count: int
    mean_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """Mean time of an answered request in the agent, stage by stage; milliseconds."""

    parse_ms: float
    queue_ms: float
    compute_ms: float
    encode_ms: float

    @property
    def total_ms(self) -> float:
        """All stages together."""
        return self.parse_ms + self.queue_ms + self.compute_ms + self.encode_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What the machine spent in the time of a load; None where nobody tells.

    engine_share: seconds that the engine ran, per second. gpu_share: utilisation by NVML, of the
    GPU that did most. cpu_s: of the agent's process. memory: at the end.
    """

    engine_share: float
    gpu_share: float | None = None
    gpu_memory_bytes: int | None = None
    cpu_s: float | None = None
    rss_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One load and what came of it.

    connections: of a closed loop. offered: requests per second of an open loop. rates: answers
    with status 200 per second. refused: answers by other status. stages: None if none was
    answered. wall_s: including the last answers. client_share: of a processor, taken by the client
    itself.
    """

    connections: int | None
    offered: float | None
    rows: int
    binary: bool
    requests_per_s: float
    rows_per_s: float
    latency: Latency | None
    refused: dict[int, int]
    refused_p99_ms: float | None
    lost: int
    unanswered: int
    wall_s: float
    runs: tuple[Runs, ...]
    stages: Stages | None
    usage: Usage
    client_share: float

    @property
    def title(self) -> str:
        """What was offered, in words."""
        if self.offered is not None:
            return f"{self.offered:g}/s"
        return f"{self.connections} conn"

    @property
    def answers(self) -> int:
        """The number of requests that got status 200."""
        return 0 if self.latency is None else self.latency.answers

    @property
    def failures(self) -> int:
        """The number of all others."""
        return sum(self.refused.values()) + self.lost + self.unanswered

    @property
    def mean_rows(self) -> float:
        """Rows of a run of the engine, on average; 0 without a run."""
        count = sum(run.count for run in self.runs)
        return sum(run.rows * run.count for run in self.runs) / count if count else 0.0

    @property
    def cpu_us_per_request(self) -> float | None:
        """Processor time of the agent for one answer."""
        if self.usage.cpu_s is None or not self.answers:
            return None
        return 1e6 * self.usage.cpu_s / self.answers


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantSpeed:
    """A variant and how fast it was measured, when packed or here."""

    id: str
    backend: Backend
    precision: Precision
    measurements: tuple[Measurement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What answers: the variant and its bounds, as far as they are known.

    max_batch: of the profile, 0 without a batch. batch_rows: the most that one run may take
    together, 1 where requests are not joined. speeds: every variant of this backend.
    The last five are None unless the agent was started here.
    """

    model: str
    variant: str
    backend: Backend
    precision: Precision
    on_gpu: bool
    max_batch: int
    batch_rows: int
    cpus: int
    speeds: tuple[VariantSpeed, ...] = ()
    batching: bool | None = None
    bundle_batches: bool | None = None
    queue_size: int | None = None
    batch_window_ms: float | None = None
    intra_op_threads: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer of an opened model: what it is, in what precision, and its time in one run."""

    name: str
    kind: str
    precision: str
    mean_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTimes:
    """Where the time of a run goes. run_ms: median of whole runs without a profiler.

    where: what ran, such as the variant; source: what timed it.
    """

    where: str
    source: str
    rows: int
    runs: int
    run_ms: float
    layers: tuple[Layer, ...]
    backend: Backend | None = None

    @property
    def layers_ms(self) -> float:
        """All layers together."""
        return sum(layer.mean_ms for layer in self.layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurements:
    """Everything that advice may be drawn from."""

    served: Served | None = None
    points: tuple[Point, ...] = ()
    profile: LayerTimes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One change. weight: the share of time or of requests that it is about, which ranks it.

    evidence: what was measured. change: what to do; key: the configuration key, flag or command.
    """

    code: str
    weight: float
    evidence: str
    change: str
    key: str
