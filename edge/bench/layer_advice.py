"""What the times of layers say should change; the rules of `advice` for a profile."""

from __future__ import annotations

from collections.abc import Callable

from edge.bench.measurements import MIN_SHARE, Advice, LayerTimes

LAUNCH_BOUND = 0.5
REFORMATS = frozenset({"Reformat", "Cast", "Transpose", "NoOp", "ReorderInput", "ReorderOutput",
                       "Shuffle", "MemcpyFromHost", "MemcpyToHost", "copy_"})  # fmt: skip
QUANTIZES = frozenset({"QuantizeLinear", "DequantizeLinear"})


def _reformats(times: LayerTimes) -> Advice | None:
    share, count = _share_of(times, REFORMATS)
    if share < MIN_SHARE:
        return None
    on_trt = times.backend in {"trt", "trt-rtx"}
    return Advice(
        code="reformats",
        weight=share,
        evidence=f"{share:.0%} of the layers' time goes into {count} that only copy, cast or "
        "reorder",
        change="let the builder search for formats that agree"
        if on_trt
        else "look for what makes them needed",
        key="edge-kit build --level 5" if on_trt else "edge-kit lint",
    )


def _quantizing(times: LayerTimes) -> Advice | None:
    share, count = _share_of(times, QUANTIZES)
    if share < MIN_SHARE:
        return None
    return Advice(
        code="quantizing",
        weight=share,
        evidence=f"{share:.0%} of the layers' time goes into {count} QuantizeLinear and "
        "DequantizeLinear that nothing fused",
        change="keep the nodes between them in float, then measure again",
        key="edge-kit calibrate --keep-float",
    )


def _float_layer(times: LayerTimes) -> Advice | None:
    """One float layer dominates a model that computes in integers elsewhere."""
    if not times.layers or not any(layer.precision == "int8" for layer in times.layers):
        return None
    rest = [layer for layer in times.layers if layer.kind not in REFORMATS | QUANTIZES]
    slowest = max(rest, key=lambda layer: layer.mean_ms, default=None)
    if slowest is None or slowest.precision not in {"fp32", "fp16"}:
        return None
    share = slowest.mean_ms / times.layers_ms
    if share < 2 * MIN_SHARE:
        return None
    return Advice(
        code="float-layer",
        weight=share,
        evidence=f"{slowest.name} ({slowest.kind}) takes {share:.0%} in {slowest.precision}",
        change="see whether it can be int8: --report says why it is not",
        key="edge-kit calibrate --report",
    )


def _launches(times: LayerTimes) -> Advice | None:
    """A run takes much longer than its layers: copies, launches, the host."""
    if not times.layers or times.run_ms <= 0:
        return None
    share = 1 - times.layers_ms / times.run_ms
    if share < LAUNCH_BOUND:
        return None
    return Advice(
        code="launches",
        weight=share,
        evidence=f"a run of {times.rows} rows takes {times.run_ms:.3f} ms, its layers "
        f"{times.layers_ms:.3f} ms",
        change="the rest is copies and launches: run more rows at once",
        key="--rows, max_batch_rows",
    )


RULES_OF_LAYERS: tuple[Callable[[LayerTimes], Advice | None], ...] = (
    _reformats, _quantizing, _float_layer, _launches,
)  # fmt: skip


def _share_of(times: LayerTimes, kinds: frozenset[str]) -> tuple[float, int]:
    chosen = [layer.mean_ms for layer in times.layers if layer.kind in kinds]
    return (sum(chosen) / times.layers_ms if times.layers_ms else 0.0), len(chosen)
