"""What to change, ranked, from what was measured and nothing else.

Every rule looks at one cause, asks for the measurement that would show it, and names the key or
command that changes it. A rule without its measurement is silent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from edge.bench.layer_advice import RULES_OF_LAYERS
from edge.bench.measurements import MIN_SHARE, Advice, Measurements, Point, Served, VariantSpeed

TOO_MANY_REQUESTS = 429
MIN_GAIN = 1.1  # of a measured alternative
BUSY, IDLE = 0.85, 0.5  # engine seconds a second: the engine is the limit; something else is
FULL_BATCH = 0.9
SMALL_PART = 4  # a profile this many times larger than any batch that was seen is too large
NEAR_CLIENT_LIMIT = 0.9
HOST_DOMINATES = 0.5


def advise(measured: Measurements) -> tuple[Advice, ...]:
    """Return what should change, what weighs most first, one Advice for each cause."""
    found: dict[str, Advice] = {}
    for advice in _all(measured):
        known = found.get(advice.code)
        if known is None or advice.weight > known.weight:
            found[advice.code] = advice
    return tuple(sorted(found.values(), key=lambda advice: -advice.weight))


def _all(measured: Measurements) -> Iterator[Advice]:
    if measured.served is not None:
        for rule in _RULES_OF_A_POINT:
            for point in measured.points:
                advice = rule(point, measured.served)
                if advice is not None:
                    yield advice
        for other in (
            _faster_variant(measured.served),
            _large_profile(measured.points, measured.served),
        ):
            if other is not None:
                yield other
    if measured.profile is not None:
        for rule_of_layers in RULES_OF_LAYERS:
            advice = rule_of_layers(measured.profile)
            if advice is not None:
                yield advice


def _client_bound(point: Point, served: Served) -> Advice | None:
    if point.client_share < NEAR_CLIENT_LIMIT or point.usage.engine_share > BUSY:
        return None
    return Advice(
        code="client-bound",
        weight=point.client_share,
        evidence=f"{point.title}: the client itself took {point.client_share:.0%} of a processor, "
        f"the engine ran {point.usage.engine_share:.0%} of the time",
        change="the agent can do more than was measured: run the client on another machine",
        key="--url",
    )


def _queue_full(point: Point, served: Served) -> Advice | None:
    refused = point.refused.get(TOO_MANY_REQUESTS, 0)
    share = refused / max(1, point.answers + point.failures)
    if share < MIN_SHARE / 10:
        return None
    said = (
        f"{point.title}: {refused} of {point.answers + point.failures} requests refused with 429, "
        f"the engine ran {point.usage.engine_share:.0%} of the time"
    )
    if point.usage.engine_share >= BUSY:
        return Advice(
            code="over-capacity",
            weight=share,
            evidence=said,
            change="this is more than the device can do: a longer queue would only add latency; "
            "serve a faster variant or offer less",
            key="variant",
        )
    return Advice(
        code="queue-full",
        weight=share,
        evidence=said,
        change="bursts do not fit into the queue although the engine has time: lengthen it"
        + ("" if served.queue_size is None else f" (now {served.queue_size})"),
        key="queue_size",
    )


def _not_joined(point: Point, served: Served) -> Advice | None:
    queue = _queue_share(point)
    is_alone = served.batch_rows <= 1
    if not is_alone or queue < MIN_SHARE or served.max_batch <= point.rows:
        return None
    said = (
        f"{point.title}: requests waited for {queue:.0%} of their time in the agent while each ran "
        "alone"
    )
    if served.batching is False:
        change, key = "let requests that wait run as one", "batching"
    elif served.bundle_batches is False:
        change = "the bundle does not allow batches: pack it anew, which tries whether rows see "
        change, key = change + "each other", "edge-kit pack"
    else:
        change, key = "let requests that wait run as one, if the bundle allows it", "batching"
    return Advice(code="not-joined", weight=queue, evidence=said, change=change, key=key)


def _batch_limit(point: Point, served: Served) -> Advice | None:
    """Runs are as large as they may be, more wait, and larger ones were measured to cost less."""
    queue = _queue_share(point)
    if served.batch_rows <= 1 or point.mean_rows < FULL_BATCH * served.batch_rows:
        return None
    saved = _saved_by_size(point)
    if queue < MIN_SHARE or saved is None:
        return None
    said = f"{point.title}: {point.mean_rows:.1f} of {served.batch_rows} rows a run, and {saved}"
    if served.batch_rows < served.max_batch:
        return Advice(
            code="batch-limit", weight=queue, evidence=said, key="max_batch_rows",
            change=f"the profile takes {served.max_batch} rows: raise the limit",
        )  # fmt: skip
    return Advice(
        code="batch-limit", weight=queue, evidence=said, key="edge-kit export --shape",
        change=f"every run fills the profile: export with a larger maximum than {served.max_batch}",
    )  # fmt: skip


def _window(point: Point, served: Served) -> Advice | None:
    stages, window = point.stages, served.batch_window_ms
    if stages is None or not window or served.batch_rows <= 1:
        return None
    waits = _queue_share(point)
    if (
        point.usage.engine_share < IDLE
        and waits > IDLE / 2
        and stages.queue_ms > MIN_SHARE * window
    ):
        return Advice(
            code="window-long",
            weight=waits,
            evidence=f"{point.title}: requests waited {stages.queue_ms:.2f} ms of "
            f"{stages.total_ms:.2f} although the engine ran {point.usage.engine_share:.0%} of the "
            "time",
            change=f"wait less for company (now {window:g} ms)",
            key="batch_window_ms",
        )
    saved = _saved_by_size(point)
    crowd = (point.connections or 0) * point.rows
    is_short = point.mean_rows < served.batch_rows / 2 and crowd >= 2 * point.mean_rows
    if point.usage.engine_share >= BUSY and is_short and saved is not None:
        return Advice(
            code="window-short",
            weight=1 - point.mean_rows / min(crowd, served.batch_rows),
            evidence=f"{point.title}: {point.mean_rows:.1f} of {served.batch_rows} rows a run, and "
            + saved,
            change=f"wait longer for company (now {window:g} ms)",
            key="batch_window_ms",
        )
    return None


def _threads(point: Point, served: Served) -> Advice | None:
    usage, threads = point.usage, served.intra_op_threads
    if served.on_gpu or usage.cpu_s is None or threads is None:
        return None
    used = usage.cpu_s / point.wall_s
    if threads > served.cpus:
        return Advice(
            code="threads-many",
            weight=1 - served.cpus / threads,
            evidence=f"{threads} threads share {served.cpus} processors",
            change=f"use {served.cpus} threads at most",
            key="intra_op_threads",
        )
    spare = 1 - used / served.cpus
    if threads < served.cpus and usage.engine_share >= BUSY and spare > MIN_SHARE:
        return Advice(
            code="threads-few",
            weight=spare,
            evidence=f"{point.title}: the engine ran {usage.engine_share:.0%} of the time with "
            f"{threads} threads, and the agent used {used:.1f} of {served.cpus} processors",
            change="give one inference more threads",
            key="intra_op_threads",
        )
    return None


def _host(point: Point, served: Served) -> Advice | None:
    """Everything but queue and compute dominates what the client waits for."""
    stages, latency = point.stages, point.latency
    if stages is None or latency is None or latency.mean_ms <= 0 or point.offered is not None:
        return None
    share = 1 - (stages.queue_ms + stages.compute_ms) / latency.mean_ms
    if share < HOST_DOMINATES or point.usage.engine_share > IDLE:
        return None
    said = (
        f"{point.title}: {share:.0%} of {latency.mean_ms:.2f} ms is neither waiting nor computing "
        f"({stages.compute_ms:.2f} ms)"
    )
    if not point.binary:
        change, key = "send tensors in binary", "binary_data_size"
    elif served.max_batch > point.rows:
        change, key = f"send more rows a request (now {point.rows})", "--rows"
    else:
        return None
    return Advice(code="host-dominates", weight=share, evidence=said, change=change, key=key)


def _json(point: Point, served: Served) -> Advice | None:
    stages = point.stages
    if stages is None or point.binary or stages.total_ms <= 0:
        return None
    share = (stages.parse_ms + stages.encode_ms) / stages.total_ms
    if share < MIN_SHARE:
        return None
    return Advice(
        code="json-slow",
        weight=share,
        evidence=f"{point.title}: reading and writing JSON took "
        f"{stages.parse_ms + stages.encode_ms:.2f} of {stages.total_ms:.2f} ms in the agent",
        change="send tensors and ask for outputs in binary",
        key="binary_data_size, binary_data_output",
    )


_RULES_OF_A_POINT: tuple[Callable[[Point, Served], Advice | None], ...] = (
    _client_bound, _queue_full, _not_joined, _batch_limit, _window, _threads, _host, _json,
)  # fmt: skip


def _faster_variant(served: Served) -> Advice | None:
    """Another variant of the backend was faster on the same machine, at the same batch."""
    own = next((speed for speed in served.speeds if speed.id == served.variant), None)
    if own is None:
        return None
    found: list[tuple[float, VariantSpeed, str]] = []
    for other in served.speeds:
        for theirs in other.measurements:
            for mine in own.measurements:
                alike = (mine.device, mine.batch, mine.threads, mine.runtime) == (
                    theirs.device, theirs.batch, theirs.threads, theirs.runtime,
                )  # fmt: skip
                if other.id != own.id and alike and mine.p50_ms > MIN_GAIN * theirs.p50_ms > 0:
                    said = (
                        f"packing measured {theirs.p50_ms:g} ms for {other.id} and {mine.p50_ms:g} "
                        f"for {own.id}, batch {mine.batch}, on {mine.device}"
                    )
                    found.append((mine.p50_ms / theirs.p50_ms, other, said))
    if not found:
        return None
    gain, other, said = max(found, key=lambda item: item[0])
    return Advice(
        code="faster-variant",
        weight=1 - 1 / gain,
        evidence=said,
        change=f"serve variant {other.id} ({other.precision}); see --compare for its accuracy here",
        key="variant",
    )


def _large_profile(points: tuple[Point, ...], served: Served) -> Advice | None:
    """Even the largest load came nowhere near the profile, which an engine reserves memory for."""
    runs = [run.rows for point in points for run in point.runs]
    crowd = max(((point.connections or 0) * point.rows for point in points), default=0)
    if not runs or not served.on_gpu or crowd < served.max_batch:
        return None
    if max(runs) * SMALL_PART > served.max_batch:
        return None
    return Advice(
        code="profile-large",
        weight=MIN_SHARE,
        evidence=f"the largest run had {max(runs)} rows, the profile takes {served.max_batch}",
        change="an engine takes memory for its largest shape: export with a smaller maximum",
        key="edge-kit export --shape",
    )


def _queue_share(point: Point) -> float:
    """Return the share of a request's time in the agent that it waited."""
    stages = point.stages
    return stages.queue_ms / stages.total_ms if stages is not None and stages.total_ms else 0.0


def _saved_by_size(point: Point) -> str | None:
    """Return in words what larger runs saved per row, None if they were not seen to."""
    runs = sorted((run for run in point.runs if run.rows), key=lambda run: run.rows)
    if len(runs) < 2:
        return None
    small, large = runs[0], runs[-1]
    each, together = small.mean_ms / small.rows, large.mean_ms / large.rows
    if each < MIN_GAIN * together:
        return None
    return (
        f"a row took {each:.3f} ms in runs of {small.rows}, {together:.3f} ms in runs of "
        f"{large.rows}"
    )
