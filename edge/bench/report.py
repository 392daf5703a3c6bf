"""The tables of `bench` and `profile`, for people: 80 columns, no colour."""

from __future__ import annotations

from collections import defaultdict

from edge.bench.measurements import Advice, LayerTimes, Point
from edge.bench.table import mebibytes, number, percent, table, wrapped

TOP_LAYERS = 15


def latency_table(points: tuple[Point, ...]) -> str:
    """Return what the client saw of each load."""
    rows = []
    for point in points:
        found = point.latency
        times = (
            [None] * 4
            if found is None
            else [found.p50_ms, found.p90_ms, found.p99_ms, found.p999_ms]
        )
        rows.append(
            [
                point.title,
                number(point.requests_per_s),
                number(point.rows_per_s),
                *(number(time) for time in times),
                _failures(point),
            ]
        )
    headings = ["load", "req/s", "rows/s", "p50\nms", "p90\nms", "p99\nms", "p99.9\nms", "not 200"]
    return table(headings, rows)


def agent_table(points: tuple[Point, ...]) -> str:
    """Return where the time went in the agent, and what it cost the machine."""
    rows = []
    for point in points:
        stages, usage = point.stages, point.usage
        io_ms = None if stages is None else stages.parse_ms + stages.encode_ms
        rows.append(
            [
                point.title,
                f"{point.mean_rows:.1f}",
                number(None if stages is None else stages.queue_ms),
                number(None if stages is None else stages.compute_ms),
                number(io_ms),
                percent(usage.engine_share),
                percent(usage.gpu_share),
                number(point.cpu_us_per_request),
                mebibytes(usage.rss_bytes),
                mebibytes(usage.gpu_memory_bytes),
            ]
        )
    headings = ["load", "rows\n/run", "queue\nms", "compute\nms", "codec\nms", "engine\nbusy",
                "GPU\nbusy", "CPU\nus/req", "RSS\nMiB", "GPU\nMiB"]  # fmt: skip
    return table(headings, rows)


def batch_lines(points: tuple[Point, ...]) -> str:
    """Return how many runs had how many rows, a line a load."""
    lines = []
    for point in points:
        total = sum(run.count for run in point.runs)
        if not total:
            continue
        often = sorted(point.runs, key=lambda run: -run.count)[:4]
        shares = ", ".join(f"{run.rows} ({run.count / total:.0%})" for run in often)
        rest = len(point.runs) - len(often)
        lines.append(f"  {point.title}: {shares}" + (f" and {rest} other sizes" if rest else ""))
    return "\n".join(["rows of a run, most frequent first:", *lines]) if lines else ""


def layer_tables(times: LayerTimes) -> str:
    """Return the layers that take most, then all of them by kind and precision."""
    total = times.layers_ms or 1.0
    slowest = sorted(times.layers, key=lambda layer: -layer.mean_ms)[:TOP_LAYERS]
    top = table(
        ["layer", "kind", "in", "ms", "share"],
        [
            [layer.name, layer.kind[:24], layer.precision, number(layer.mean_ms),
             percent(layer.mean_ms / total)]
            for layer in slowest
        ],
    )  # fmt: skip
    sums: dict[tuple[str, str], list[float]] = defaultdict(list)
    for layer in times.layers:
        sums[layer.kind, layer.precision].append(layer.mean_ms)
    ordered = sorted(sums.items(), key=lambda item: -sum(item[1]))
    kinds = table(
        ["kind", "in", "layers", "ms", "share"],
        [
            [kind, precision, str(len(each)), number(sum(each)), percent(sum(each) / total)]
            for (kind, precision), each in ordered[:TOP_LAYERS]
        ],
    )
    head = wrapped(
        f"{times.where}, {times.rows} rows: {number(times.run_ms)} ms a run, "
        f"{number(times.layers_ms)} ms in {len(times.layers)} layers ({times.source}, "
        f"mean of {times.runs} runs)"
    )
    return f"{head}\n\n{top}\n\n{kinds}"


def advice_lines(advice: tuple[Advice, ...]) -> str:
    """Return what to change, most important first."""
    if not advice:
        return "advice: nothing that was measured asks for a change"
    lines = ["advice, what weighs most first:"]
    for place, one in enumerate(advice, 1):
        lines.append(wrapped(f"{place}. {one.change}", indent="   "))
        lines.append(wrapped(f"   [{one.key}]", indent="   "))
        lines.append(wrapped(f"   measured: {one.evidence}", indent="   "))
    return "\n".join(lines)


def _failures(point: Point) -> str:
    parts = [f"{count}x{status}" for status, count in point.refused.items()]
    if point.lost:
        parts.append(f"{point.lost} lost")
    if point.unanswered:
        parts.append(f"{point.unanswered} open")
    return ", ".join(parts) or "0"
