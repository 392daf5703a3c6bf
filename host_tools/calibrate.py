"""`edge-kit calibrate`: files in, a quantized file and its table out, or nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from calibration.budget import Budget
from calibration.calibrate import (
    ADVISED_SAMPLES,
    Calibrated,
    HeldOut,
    calibrate,
    ranges_of_all,
)
from calibration.checkpoint import Checkpoints
from calibration.errors import GateError
from calibration.gate import Gate, gate_problems
from calibration.image_samples import ImageSamples
from calibration.model_file import load_model, save_model
from calibration.samples import NpzSamples, read_labels
from calibration.table import (
    CalibrationTable,
    QuantizedFile,
    ort_path,
    save_table,
    table_path,
)
from calibration.trt_cache import cache_from_ranges
from edge.errors import EdgeError, UsageError
from edge.files import atomic_write, sha256_of
from host_tools.coverage import coverage_of
from host_tools.progress import progress_bar
from host_tools.report import report_from
from host_tools.samples import samples_at
from host_tools.text import TextSamples


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrateRequest:
    """What to calibrate, on what, and how far the result may be from fp32."""

    model: Path
    data: Path
    held_out: Path | None
    labels: Path | None
    tokenizer: Path | None
    method: str
    keep_float: tuple[str, ...]
    batch: int
    gate: Gate
    budget: Budget | None
    report: Path | None
    calibration_cache: Path | None = None
    out: Path | None


def calibrate_file(
    request: CalibrateRequest, *, say: Callable[[str], None]
) -> tuple[CalibrationTable, Path]:
    """Write both int8 forms and their table; return the table and the path of the TensorRT form.

    The table comes last and names the digests of the others, so a half-written set never counts.
    Raises GateError, and writes nothing, if a form does not pass the accuracy gate.
    """
    out = request.out or request.model.with_suffix(".int8.onnx")
    _check_out(out, request)
    model = load_model(request.model)
    model_sha256 = sha256_of(request.model, follow_links=True)[0]
    samples = samples_at(request.data, model, tokenizer=request.tokenizer)
    data_sha256 = samples.sha256
    if samples.count < ADVISED_SAMPLES:
        say(f"warning: {samples.count} samples; {ADVISED_SAMPLES:,} or more are advised")
    if isinstance(samples, TextSamples):
        coverage = coverage_of(samples)
        for line in coverage.lines():
            say(line)
        for warning in coverage.warnings():
            say(f"warning: {warning}")
    judged = samples
    if request.held_out is not None:
        judged = samples_at(request.held_out, model, tokenizer=request.tokenizer)
    labels = None if request.labels is None else read_labels(request.labels)
    if labels is None and isinstance(judged, NpzSamples | ImageSamples):
        labels = judged.labels()
    checkpoints = Checkpoints(partial_path(out), data_sha256, say=say)
    with _cleared_at_the_end(checkpoints), progress_bar() as progress:
        result = calibrate(
            model,
            samples,
            method=request.method,
            keep_float=request.keep_float,
            batch=request.batch,
            held_out=None if judged is samples else HeldOut(samples=judged, labels=labels),
            labels=labels if judged is samples else None,
            budget=request.budget,
            explain=request.report is not None,
            progress=progress,
            checkpoints=checkpoints,
        )
    if request.report is not None:  # whatever the gate says: it shows what to do about it
        atomic_write(request.report, report_from(result, request.model).encode())
    _check_gate(result, request, out)
    if request.calibration_cache is not None:
        with progress_bar() as progress:
            ranges = ranges_of_all(
                model, samples, method=result.method, batch=request.batch, progress=progress
            )
        atomic_write(request.calibration_cache, cache_from_ranges(ranges))
    save_model(result.ort.model, ort_path(out))
    save_model(result.tensorrt.model, out)
    table = CalibrationTable(
        method=result.method,
        samples=result.samples,
        data_sha256=data_sha256,
        model_sha256=model_sha256,
        amax=result.amax,
        sqnr_db=result.sqnr_db,
        gains_db=result.gains_db,
        cost=result.cost,
        kept_float=result.kept_float,
        sensitivity_db=result.sensitivity_db,
        tensorrt=QuantizedFile(sha256=sha256_of(out)[0], accuracy=result.tensorrt.accuracy),
        ort=QuantizedFile(sha256=sha256_of(ort_path(out))[0], accuracy=result.ort.accuracy),
    )
    save_table(table, table_path(out))
    return table, out


def partial_path(out: Path) -> Path:
    """Return the folder in which an unfinished run keeps what it has seen."""
    return out.with_name(f"{out.name}.partial")


@contextlib.contextmanager
def _cleared_at_the_end(checkpoints: Checkpoints) -> Iterator[None]:
    """Drop the checkpoints unless the block was interrupted: an error would come again."""
    try:
        yield
    except EdgeError:
        checkpoints.clear()
        raise
    checkpoints.clear()


def _check_out(out: Path, request: CalibrateRequest) -> None:
    """Refuse, before minutes of work, a place that cannot be written or holds an input."""
    for path in (out, ort_path(out), table_path(out)):
        if path.exists() and any(
            given is not None and given.exists() and path.samefile(given)
            for given in (request.model, request.data, request.held_out, request.labels)
        ):
            raise UsageError(f"--out {out} would overwrite the input {path}; give another file")
    for flag, wanted in (
        ("--out", out),
        ("--report", request.report),
        ("--calibration-cache", request.calibration_cache),
    ):
        if wanted is not None and not wanted.parent.is_dir():
            raise UsageError(f"{flag} {wanted}: there is no folder {wanted.parent}; make it first")


def _check_gate(result: Calibrated, request: CalibrateRequest, out: Path) -> None:
    problems = [
        f"{form}: {problem}"
        for form, accuracy in (
            ("for TensorRT", result.tensorrt.accuracy),
            ("for ONNX Runtime", result.ort.accuracy),
        )
        for problem in gate_problems(accuracy, request.gate)
    ]
    if problems:
        older = f" (the {out} that is there is from an earlier run)" if out.exists() else ""
        raise GateError(
            f"{request.model} does not pass the accuracy gate, nothing is written{older}: "
            + "; ".join(problems)
            + "; add samples, try --keep-float, or widen the gate on purpose"
        )
