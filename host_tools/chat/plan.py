"""Whether a chat model fits a device, and how fast it can be there at most; before any build.

Decode speed is bounded by memory: every token reads all weights and the cache of its lane once.
What is assumed and not measured on the device says so beside its number.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from edge.chat.scheduler import SchedulerOptions
from edge.chat.spec import DecoderSpec, Form
from edge.config import AgentConfig
from edge.devices import GIB, Device
from edge.errors import UsageError
from host_tools.chat.llm_spec import LlmSpec
from host_tools.chat.sizes import Head, Precision, weight_bytes

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8", "w8a8", "int4")
WEIGHTS_TOO_LARGE = "the weights alone are too large"
UNPROVEN = "as on the CPU; TensorRT may widen it to fp16 as it builds"
# Which of those that are fast enough is proposed: the one that loses least, of what TensorRT is
# documented to run. Weight-only int8 is not, so TensorRT may widen it to FP16 as it builds.
PREFERRED: tuple[Precision, ...] = ("fp16", "w8a8", "int4", "int8", "fp32")
FAST_ENOUGH = 20.0  # tokens/s at the roofline: about twice as fast as people read

USUAL_CONTEXT = 8192
DEFAULT_LANES = 4
SMALLEST_CONTEXT = 512  # with less, a conversation is over after a few turns
CONTEXT_STEP = 256  # contexts that are proposed are multiples of it

# CUDA's context, TensorRT's and cuBLAS's code and buffers, the agent itself. An assumption: what
# others report for 8B models beyond weights and cache is 0.5 to 0.8 GB with the activations.
RUNTIME_BYTES = 600_000_000
# Firmware takes this share of a Jetson's memory before Linux sees it: of 8 GiB users report 7.4 as
# total, of 64 about 61. Linux and its services without a desktop: an assumption.
CARVED_OUT_SHARE = 0.075
JETSON_SYSTEM_BYTES = 1 * GIB
# A desktop's own windows; an assumption, a headless card has it all.
DISPLAY_BYTES = GIB // 2
# Copies alive at once in a layer, as ONNX Runtime ran a chunk of 512 tokens (2 layers 2048 wide,
# caches of 512 to 4096 positions; the peak of memory was 0.8 to 1.1 of this formula). Of an
# MLP those as wide as the model and as its inner layer; of attention those as wide as the model,
# and the scores. TensorRT fuses more, so that this is an upper bound there.
MLP_HIDDEN_COPIES, MLP_INNER_COPIES, ATTENTION_HIDDEN_COPIES = 4, 7, 12
SCORE_COPIES: dict[Form, int] = {
    "scatter": 1,
    "scatter-primitive": 4,
    "prefix": 5,
    "concat": 4,
    "layered": 4,
}

Verdict = Literal["fits", "too large", "not supported"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Widths:
    """What activations of one token are as wide as."""

    hidden: int
    intermediate: int
    heads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Bytes that a chat model takes while it runs.

    weights: as in its file. cache: keys and values of all lanes. workspace: activations of a chunk
    of a prompt, logits, and what the form of the graph copies. runtime: see RUNTIME_BYTES.
    """

    weights: int
    cache: int
    workspace: int
    runtime: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Supply:
    """What a device has for a model: usable_bytes, and in words what was taken off, and why."""

    usable_bytes: int
    assumption: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One precision on one device.

    context: positions of each lane in this row; longest_context: that would fit with these lanes,
    None if not even the smallest does. tokens_per_s: the bound for one conversation that has just
    begun, tokens_per_s_full: for one whose lane is full, all_lanes_per_s: for all lanes together,
    full; None where the device's bandwidth is unknown.
    """

    precision: Precision
    verdict: Verdict
    remark: str
    context: int
    lanes: int
    demand: Demand
    longest_context: int | None
    tokens_per_s: float | None
    tokens_per_s_full: float | None
    all_lanes_per_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FitPlan:
    """Every precision on one device, and the one to take, None if none fits."""

    device: str
    form: Form
    supply: Supply
    bandwidth_bytes_per_s: float | None
    rows: tuple[Row, ...]
    recommended: Precision | None
    advice: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What is asked of a device; None is the plan's to choose.

    reserve_bytes: memory that others use, in place of the plan's assumption. head: of int4.
    """

    context: int | None = None
    lanes: int = DEFAULT_LANES
    form: Form | None = None
    reserve_bytes: int | None = None
    head: Head = "same"


def fit_plan(spec: LlmSpec, device: Device, ask: Ask | None = None) -> FitPlan:
    """Return what fits; raises UsageError for a context that the model was not made for."""
    ask = ask or Ask()
    if ask.context is not None and not 1 <= ask.context <= spec.context:
        raise UsageError(f"--context {ask.context}: the model was made for 1..{spec.context}")
    form = form_for(device) if ask.form is None else ask.form
    supply = supply_of(device, ask.reserve_bytes)
    rows = tuple(_row(spec, device, form, precision, supply, ask) for precision in PRECISIONS)
    best = _recommended(rows)
    return FitPlan(
        device=device.name,
        form=form,
        supply=supply,
        bandwidth_bytes_per_s=device.bandwidth_bytes_per_s,
        rows=rows,
        recommended=None if best is None else best.precision,
        advice=_advice(rows, best, supply),
    )


def fits(
    decoder: DecoderSpec,
    widths: Widths,
    device: Device,
    *,
    weights: int,
    context: int,
    lanes: int,
    reserve_bytes: int | None = None,
) -> str | None:
    """Return why a chat graph that was written cannot run on a device; None if it can.

    weights: bytes of its weight file.
    """
    demand = demand_of(decoder, widths, weights=weights, context=context, lanes=lanes)
    supply = supply_of(device, reserve_bytes)
    if demand.total <= supply.usable_bytes:
        return None
    return (
        f"{demand.total:,} bytes with {_counted(lanes, 'lane')} of "
        f"{_counted(context, 'position')}: "
        f"weights {demand.weights:,}, cache {demand.cache:,}, workspace {demand.workspace:,}, "
        f"runtime {demand.runtime:,}; but {device.title} has {supply.usable_bytes:,} for it "
        f"({supply.assumption})"
    )


def demand_of(
    decoder: DecoderSpec, widths: Widths, *, weights: int, context: int, lanes: int
) -> Demand:
    """Return what a chat graph takes with so many lanes of so many positions."""
    cache = decoder.position_bytes * context * lanes
    if decoder.form == "concat":  # it is copied at every step
        cache *= 2
    workspace = _workspace(decoder, widths, context, lanes)
    return Demand(
        weights=weights,
        cache=cache,
        workspace=workspace,
        runtime=RUNTIME_BYTES,
        total=weights + cache + workspace + RUNTIME_BYTES,
    )


def supply_of(device: Device, reserve_bytes: int | None = None) -> Supply:
    """Return what a device has for a model, beside what the agent keeps free."""
    kept = AgentConfig().memory_reserve_bytes
    memory = device.memory_bytes
    if reserve_bytes is not None:
        taken, words = reserve_bytes, f"{gigabytes(reserve_bytes)} GB reserved"
    elif device.kind == "jetson":
        carved = round(memory * CARVED_OUT_SHARE)
        taken = carved + JETSON_SYSTEM_BYTES
        words = (
            f"{gigabytes(carved)} GB carved out by firmware and {gigabytes(JETSON_SYSTEM_BYTES)} "
            "GB for Linux without a desktop, assumed"
        )
    else:
        taken, words = DISPLAY_BYTES, f"{gigabytes(DISPLAY_BYTES)} GB for the display, assumed"
    return Supply(
        usable_bytes=max(0, memory - taken - kept),
        assumption=f"{gigabytes(memory)} GB less {words}, and {gigabytes(kept)} GB that the agent "
        "keeps free",
    )


def form_for(device: Device) -> Form:
    """Return the form of graph for the TensorRT of a device; JetPack 6 has no TensorScatter."""
    return "prefix" if device.kind == "jetson" and _sm(device) < (9, 0) else "scatter"


def widths_of(spec: LlmSpec) -> Widths:
    """Return what activations of a model are as wide as."""
    return Widths(hidden=spec.hidden, intermediate=spec.intermediate, heads=spec.heads)


def gigabytes(size: int) -> str:
    """Return a size in GB for people, two digits after the point."""
    return f"{size / 1e9:.2f}"


def _row(
    spec: LlmSpec, device: Device, form: Form, precision: Precision, supply: Supply, ask: Ask
) -> Row:
    longest = _longest_context(spec, form, precision, supply, ask)
    context = min(spec.context, USUAL_CONTEXT) if ask.context is None else ask.context
    if ask.context is None and longest is not None and longest < context:
        context = longest
    demand = _demand(spec, form, precision, context, ask)
    verdict: Verdict = "fits"
    remark = UNPROVEN if precision == "int8" else ""
    if precision == "int4" and device.kind == "jetson" and _sm(device) < (8, 0):
        verdict, remark = "not supported", "the TensorRT 8 of this Jetson reads no int4"
    elif demand.total > supply.usable_bytes:
        verdict, remark = "too large", _too_large(demand, supply, longest)
    half = precision != "fp32"
    read = weight_bytes(
        spec, form=form, precision=precision, half=half, context=context, head=ask.head
    ).per_token
    lane = decoder_of(spec, form, half=half, context=context).position_bytes * context
    bound = device.bandwidth_bytes_per_s
    return Row(
        precision=precision,
        verdict=verdict,
        remark=remark,
        context=context,
        lanes=ask.lanes,
        demand=demand,
        longest_context=longest,
        tokens_per_s=None if bound is None else bound / read,
        tokens_per_s_full=None if bound is None else bound / (read + lane),
        all_lanes_per_s=None if bound is None else ask.lanes * bound / (read + ask.lanes * lane),
    )


def _too_large(demand: Demand, supply: Supply, longest: int | None) -> str:
    if longest is not None:
        return f"{longest} positions would fit"
    if demand.weights + demand.runtime > supply.usable_bytes:
        return WEIGHTS_TOO_LARGE
    return "fewer lanes may fit"


def _longest_context(
    spec: LlmSpec, form: Form, precision: Precision, supply: Supply, ask: Ask
) -> int | None:
    """Return the longest context that fits, found by halving: more positions always take more."""

    def is_enough(steps: int) -> bool:
        context = min(steps * CONTEXT_STEP, spec.context)
        return _demand(spec, form, precision, context, ask).total <= supply.usable_bytes

    low, high = 0, -(-spec.context // CONTEXT_STEP)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if is_enough(middle) else (low, middle - 1)
    longest = min(low * CONTEXT_STEP, spec.context)
    return longest if longest >= min(SMALLEST_CONTEXT, spec.context) else None


def _demand(spec: LlmSpec, form: Form, precision: Precision, context: int, ask: Ask) -> Demand:
    half = precision != "fp32"
    written = weight_bytes(
        spec, form=form, precision=precision, half=half, context=context, head=ask.head
    )
    decoder = decoder_of(spec, form, half=half, context=spec.context)
    return demand_of(
        decoder, widths_of(spec), weights=written.file, context=context, lanes=ask.lanes
    )


def decoder_of(spec: LlmSpec, form: Form, *, half: bool, context: int) -> DecoderSpec:
    """Return what a graph of a model is; half: whether its cache is FP16."""
    return DecoderSpec(
        form=form,
        layers=spec.layers,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        vocabulary=spec.vocabulary,
        context=context,
        cache="FP16" if half else "FP32",
        window=spec.window,
    )


def _workspace(decoder: DecoderSpec, widths: Widths, context: int, lanes: int) -> int:
    """Return the larger of a chunk of one prompt and a token of every lane, and all logits."""
    item = 4 if decoder.cache == "FP32" else 2
    sizes = []
    for rows, tokens in ((1, min(SchedulerOptions().chunk, context)), (lanes, 1)):
        mlp = MLP_HIDDEN_COPIES * widths.hidden + MLP_INNER_COPIES * widths.intermediate
        attention = ATTENTION_HIDDEN_COPIES * widths.hidden
        attention += SCORE_COPIES[decoder.form] * widths.heads * context
        size = rows * tokens * max(mlp, attention) * item
        if decoder.form == "prefix":  # keys and values of the new tokens are outputs
            size += rows * tokens * decoder.position_bytes
        sizes.append(size)
    return max(sizes) + lanes * decoder.vocabulary * (4 + item)


def _recommended(rows: Iterable[Row]) -> Row | None:
    """Return the row that loses least of those that are fast enough, else the fastest that fits."""
    good = [row for row in rows if row.verdict == "fits"]
    by_preference = sorted(good, key=lambda row: PREFERRED.index(row.precision))
    for row in by_preference:
        if row.tokens_per_s is None or row.tokens_per_s >= FAST_ENOUGH:
            return row
    return max(by_preference, key=lambda row: row.tokens_per_s or 0.0, default=None)


def _advice(rows: tuple[Row, ...], best: Row | None, supply: Supply) -> str:
    usable = gigabytes(supply.usable_bytes)
    if best is None:
        tried = [row for row in rows if row.verdict == "too large"]
        least = min(tried, key=lambda row: row.demand.total)
        way_out = "take a smaller model"
        if least.remark != WEIGHTS_TOO_LARGE:
            way_out = "give fewer --lanes or a shorter --context"
        return (
            f"nothing fits: {least.precision} would take {gigabytes(least.demand.total)} GB of "
            f"{usable} GB usable ({least.remark}); {way_out}"
        )
    line = (
        f"{best.precision}, {_counted(best.lanes, 'lane')} of {best.context} positions: "
        f"{gigabytes(best.demand.total)} of {usable} GB usable"
    )
    if best.tokens_per_s is None:
        return line
    return f"{line}, at most {best.tokens_per_s:.0f} tokens/s a conversation"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _sm(device: Device) -> tuple[int, int]:
    major, minor = device.sm.split(".")
    return int(major), int(minor)
