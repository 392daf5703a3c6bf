"""What a bundle on trial must keep to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of the gate.

    ready_s: until the trial serves; on top of it comes the time in which the agent builds engines
    and says so. ask_s: for one whole answer. back_s: until the old bundle serves again.
    probation_s: for how long it is watched. rounds: how often each golden case is asked.
    p95_factor, memory_factor: against the bundle before, measured on this device by the same
    questions. recorded_factor: against what the manifest recorded, on another machine perhaps, so
    that it is wide; it keeps what each release may lose from adding up. error_share: of requests
    that may fail. replay_tolerance: the widest relative error of a recorded request's outputs
    against the bundle before, see `closeness`. reclassified_share: of rows whose best class may be
    another one: `calibrate` keeps int8 at 99 % of fp32's classes, so two bundles that were both
    made so agree on 98 %.
    """

    ready_s: float = 300.0
    ask_s: float = 30.0
    build_s: float = 3600.0
    back_s: float = 300.0
    probation_s: float = 30.0
    rounds: int = 20
    p95_factor: float = 1.5
    memory_factor: float = 1.5
    recorded_factor: float = 10.0
    error_share: float = 0.01
    replay_tolerance: float = 0.5
    reclassified_share: float = 0.02


# Differences below these are noise, whatever the factor.
SLACK_MS = 2.0
SLACK_BYTES = 64 << 20
# So few failed requests are no burst.
FEW_ERRORS = 2
# Of recorded requests: one that is close between two classes may lie in any recording.
FEW_RECLASSIFIED = 1
