"""A bundle in words and tables, for `edge-kit inspect`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console, RenderableType
from rich.table import Table

from calibration.cost import Cost
from edge.bundle import MANIFEST_NAME, SIGNATURE_NAME
from edge.chat.quality_facts import ChatQuality
from edge.devices import Device
from edge.errors import UsageError
from edge.files import read_capped
from edge.manifest import (
    MAX_MANIFEST_BYTES,
    Accuracy,
    Manifest,
    Model,
    Variant,
)
from edge.manifest_reading import manifest_from_bytes
from edge.trust import MAX_SIGNATURE_BYTES, signature_from_bytes
from host_tools.disk_need import ELSEWHERE, peak_bytes
from host_tools.engine_record import EngineRecord
from host_tools.use_words import use_lines

NOT_RUN = "built, not run here"


def read_manifest(root: Path) -> tuple[bytes, Manifest, str]:
    """Return (bytes, Manifest, who claims to have signed it); nothing is verified."""
    if not (root / MANIFEST_NAME).is_file():
        raise UsageError(f"no bundle at {root}: it has no {MANIFEST_NAME}")
    content = read_capped(root / MANIFEST_NAME, max_bytes=MAX_MANIFEST_BYTES)
    signer = "unsigned"
    if (root / SIGNATURE_NAME).is_file():
        signature = signature_from_bytes(
            read_capped(root / SIGNATURE_NAME, max_bytes=MAX_SIGNATURE_BYTES)
        )
        signer = f"signed by key {signature.keyid[:12]}"
    return content, manifest_from_bytes(content), signer


def print_manifest(manifest: Manifest, signed_by: str, console: Console) -> None:
    """Print what a bundle holds, fit for 80 columns."""
    console.print(f"{manifest.name} {manifest.version}, packed {manifest.created}", style="bold")
    size = _size(stored_bytes(manifest))
    console.print(f"{signed_by}; {len(manifest.artifacts)} files, {size}")
    console.print(_peak_line(manifest))
    if len(manifest.models) > 1:
        names = ", ".join(f"{model.name} {model.version}" for model in manifest.models)
        console.print(f"{len(manifest.models)} models: {names}")
    for model in manifest.models:
        for renderable in _model_lines(manifest, model):
            console.print(renderable)


def stored_bytes(manifest: Manifest) -> int:
    """Return what a bundle's files take; equal files are stored once."""
    return sum({artifact.sha256: artifact.size for artifact in manifest.artifacts}.values())


def print_targets(devices: tuple[Device, ...], console: Console) -> None:
    """Print the known devices, fit for 80 columns."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("target", "SM", "SMs", "memory", "DLA", "engines are built"):
        right = heading in {"SMs", "memory", "DLA"}
        table.add_column(heading, justify="right" if right else "left")
    for device in devices:
        table.add_row(
            device.name,
            device.sm,
            "?" if device.sm_count is None else str(device.sm_count),
            f"{device.memory_bytes >> 30} GiB",
            str(device.dla_cores or ""),
            "here, by TensorRT-RTX" if device.kind == "desktop" else "on the device, or --on",
        )
    console.print(table)
    console.print("`this` is the machine that builds, with the TensorRT it has.")


def record_line(record: EngineRecord) -> str:
    """Return one line about an engine, or about a graph that a device will build from."""
    if record.engine is None:
        return f"{record.id}: built on device ({', '.join(record.build_for)}) from {record.file}"
    facts = record.engine
    library = "TensorRT-RTX" if record.backend == "trt-rtx" else "TensorRT"
    layers = ", ".join(f"{count} {kind}" for kind, count in sorted(facts.layers.items()))
    return (
        f"{record.id}: {record.precision} for SM {', '.join(facts.sms)}, {library} "
        f"{facts.runtime}, {facts.build_seconds:.1f} s"
        + (f"; layers: {layers}" if layers else "")
        + ("" if facts.tried else f"; {NOT_RUN}")
    )


def _peak_line(manifest: Manifest) -> str:
    peaks = {device: _size(size) for device, size in peak_bytes(manifest).items()}
    elsewhere = peaks.pop(ELSEWHERE)
    named = "".join(f"{size} on {device}, " for device, size in peaks.items())
    rest = f"{elsewhere} on {ELSEWHERE} device" if peaks else f"{elsewhere} of disk"
    return f"installing takes at most {named}{rest}, beside the bundle in service"


def _model_lines(manifest: Manifest, model: Model) -> list[RenderableType]:
    lines: list[RenderableType] = [f"\nmodel {model.name}, version {model.version}"]
    for kind, specs in (("input", model.inputs), ("output", model.outputs)):
        for spec in specs:
            shape = " x ".join(str(dim) for dim in spec.shape)
            bounds = model.profile.ranges.get(spec.name) if kind == "input" else None
            shown = "" if bounds is None else f"  profile {_bounds(bounds.min, bounds.max)}"
            lines.append(f"  {kind:<6} {spec.name}: {spec.datatype} {shape}{shown}")
    if model.batching is not None:
        ragged = model.batching.ragged
        lines.append("  requests run together" + (f", padded in {ragged!r}" if ragged else ""))
    lines += [f"  {line}" for line in use_lines(model)]
    lines += ["", _variant_table(manifest, model), *_origin_lines(model), ""]
    lines += [f"serves on {p.backend}: {p.variant}; {p.why}" for p in model.preferences]
    lines += [_quality_line(v, v.quality) for v in model.variants if v.quality is not None]
    if model.calibration is not None:
        lines.append(
            f"calibrated with {model.calibration.method} on {model.calibration.samples} samples"
        )
    if model.accuracy is not None:
        lines += accuracy_lines(model.accuracy)
    tolerances = ", ".join(f"{p} {t:g}" for p, t in model.golden.tolerance.items())
    lines.append(f"self-test: {len(model.golden.cases)} golden cases, tolerance {tolerances}")
    origin = model.provenance
    lines.append(f"from {origin.source}, opset {origin.opset}, {origin.exporter}")
    return lines


def _variant_table(manifest: Manifest, model: Model) -> Table:
    sizes = {artifact.path: artifact.size for artifact in manifest.artifacts}
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("variant", no_wrap=True)
    for heading in ("size", "peak memory", "batch", "p50 ms", "p99 ms"):
        table.add_column(heading, justify="right", no_wrap=True)
    for variant in model.variants:
        taken = variant.engine.memory_bytes if variant.engine else variant.memory_bytes
        size = _size(sum(sizes[path] for path in variant.files))
        start = [variant.id, size, _size(taken) if taken else "?"]
        if not variant.measurements:
            table.add_row(*start)
        for m in variant.measurements:
            table.add_row(*start, str(m.batch), f"{m.p50_ms:.3f}", f"{m.p99_ms:.3f}")
            start = [""] * len(start)
    return table


def _origin_lines(model: Model) -> list[str]:
    """Return where variants were measured or built, those of one place in one line."""
    ids: dict[str, list[str]] = {}
    for variant in model.variants:
        measured = [f"measured on {m.device}, {m.threads} threads" for m in variant.measurements]
        for place in dict.fromkeys(measured or [_where(variant)]):
            ids.setdefault(place, []).append(variant.id)
    return [f"{', '.join(names)}: {place}" for place, names in ids.items()]


def accuracy_lines(accuracy: Accuracy) -> list[str]:
    """Return int8 against fp32 on the held-out samples, one figure a line."""
    return [f"  {name:<18}{value}" for name, value in accuracy_rows(accuracy)]


def accuracy_rows(accuracy: Accuracy) -> list[tuple[str, str]]:
    """Return int8 against fp32 on the held-out samples, as (what, figure in words)."""
    rows = [("held-out samples", f"{accuracy.samples}")]
    if accuracy.fp32_top1_percent is not None and accuracy.int8_top1_percent is not None:
        both = f"{accuracy.fp32_top1_percent:.2f} % fp32, {accuracy.int8_top1_percent:.2f} % int8"
        rows.append(("top-1 accuracy", both))
    if accuracy.argmax_agreement_percent is not None:
        rows.append(("same top class", f"{accuracy.argmax_agreement_percent:.2f} %"))
    rows.append(("cosine", f"{accuracy.cosine_mean:.4f} mean, {accuracy.cosine_min:.4f} worst"))
    rows.append(("SQNR", f"{accuracy.sqnr_db:.1f} dB"))
    share = f"{accuracy.int8_mac_percent:.2f} % of the multiply-accumulates"
    rows.append(("int8 arithmetic", share))
    return rows


def _where(variant: Variant) -> str:
    if variant.engine is not None:
        facts = variant.engine
        built = f"engine for {facts.device}, {variant.backend} {facts.runtime}"
        return built if facts.tried else f"{built}, {NOT_RUN}"
    return "built on device" + (f": {', '.join(variant.build_for)}" if variant.build_for else "")


def _quality_line(variant: Variant, quality: ChatQuality) -> str:
    return (
        f"{variant.id}: perplexity {quality.perplexity:.2f} against "
        f"{quality.fp32_perplexity:.2f}, KL {quality.kl_mean:.4f} nats, same token "
        f"{quality.top1_agreement_percent:.1f} %, on {quality.tokens} tokens"
    )


def _bounds(low: tuple[int, ...], high: tuple[int, ...]) -> str:
    return f"{'x'.join(map(str, low))} to {'x'.join(map(str, high))}"


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"


def cost_line(cost: Cost) -> str:
    """Return what int8 should save, in a line."""
    return (
        f"predicted, against fp16: {100 * cost.compute:.0f} % of the arithmetic's time, "
        f"{100 * cost.traffic:.0f} % of the weights' bytes"
    )
