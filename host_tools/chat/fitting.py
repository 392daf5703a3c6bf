"""Refuses what no memory of its targets can hold, before it is written or packed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from calibration.errors import GateError
from edge.chat.spec import DecoderSpec, Form
from edge.devices import DEVICES, Device, device_named
from edge.errors import UsageError
from edge.manifest import Precision
from host_tools.chat.llm_spec import LlmSpec
from host_tools.chat.plan import SMALLEST_CONTEXT, Widths, decoder_of, fits, widths_of
from host_tools.chat.sizes import Head, weight_bytes
from host_tools.engine_record import EngineRecord
from host_tools.graph import Say

# Engines of these are made for one size of cache; others take a smaller one as well.
FIXED_FORMS: frozenset[Form] = frozenset({"scatter", "scatter-primitive"})


def check_engines(
    records: Iterable[EngineRecord], folder: Path, widths: Widths, *, force: bool, say: Say
) -> None:
    """Raise GateError for what cannot run on a device that it was built for, not even alone.

    It is judged with the smallest cache that it can have. force: say it, and go on.
    """
    for record in records:
        assert record.decoder is not None  # noqa: S101 - those of chat models have one
        names = record.build_for if record.engine is None else (record.engine.device,)
        for device in filter(None, map(device_named, names)):
            _check(
                f"{record.id} cannot run on {device.name}",
                record.decoder,
                widths,
                device,
                weights=_weights(record, folder),
                is_fixed=record.decoder.form in FIXED_FORMS,
                force=force,
                say=say,
            )


def check_export(
    spec: LlmSpec,
    target: str,
    precision: Precision,
    *,
    form: Form,
    head: Head,
    context: int,
    force: bool,
    say: Say,
) -> None:
    """Raise GateError for a precision whose graph cannot run on a target; see `check_engines`."""
    half = precision == "fp16"
    written = weight_bytes(
        spec, form=form, precision=precision, half=half, context=context, head=head
    )
    decoder = decoder_of(spec, form, half=half, context=context)
    check_graph(
        decoder, widths_of(spec), target, precision, weights=written.file, force=force, say=say
    )


def check_graph(
    decoder: DecoderSpec,
    widths: Widths,
    target: str,
    precision: Precision,
    *,
    weights: int,
    force: bool,
    say: Say,
) -> None:
    """Raise GateError for a graph with so many bytes of weights that cannot run on a target."""
    _check(
        f"{precision} cannot run on {target}",
        decoder,
        widths,
        known_device(target),
        weights=weights,
        is_fixed=False,
        force=force,
        say=say,
    )


def known_device(name: str) -> Device:
    """Return the device of `edge-kit targets` with this name; raises UsageError."""
    device = device_named(name)
    if device is None:
        known = ", ".join(device.name for device in DEVICES)
        raise UsageError(f"--target {name!r} is not known; give one of {known}")
    return device


def _check(
    subject: str,
    decoder: DecoderSpec,
    widths: Widths,
    device: Device,
    *,
    weights: int,
    is_fixed: bool,
    force: bool,
    say: Say,
) -> None:
    lanes = decoder.lanes or 1
    least = min(SMALLEST_CONTEXT, decoder.context)
    context = decoder.context if is_fixed else least

    def problem(on: Device, *, context: int, lanes: int) -> str | None:
        return fits(decoder, widths, on, weights=weights, context=context, lanes=lanes)

    found = problem(device, context=context, lanes=lanes)
    if found is None:
        return
    ways = []
    if lanes > 1 and problem(device, context=context, lanes=1) is None:
        ways.append("build with fewer --lanes")
    if problem(device, context=least, lanes=lanes) is None:
        ways.append("build with a shorter --context")
    ways.append("take a lower --precision")
    larger = [
        other
        for other in DEVICES
        if other.kind == device.kind and problem(other, context=context, lanes=lanes) is None
    ]
    if larger:
        smallest = min(larger, key=lambda other: other.memory_bytes)
        ways.append(f"another --target, such as {smallest.name}")
    line = f"{subject}: it takes {found}"
    if not force:
        raise GateError(f"{line}; {', '.join(ways)}, or --force to write it all the same")
    say(f"{line}; written all the same")


def _weights(record: EngineRecord, folder: Path) -> int:
    """Return the bytes of weights in a device's memory: an engine holds its own."""
    if record.engine is not None:
        return (folder / record.file).stat().st_size
    name = record.pieces[0] if record.pieces else record.weights
    assert name is not None  # noqa: S101 - a chat graph has them beside it
    return (folder / name).stat().st_size
