"""Engines for devices: built here, built on a remote device, or left to the device to build.

RTX card     TensorRT-RTX builds for its SM on any x86 host, GPU or not
this         the TensorRT of this machine, tried here before it is written
user@host    the same on that machine, over SSH (--on)
Jetson       not here: the graphs go into the bundle and the agent builds
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from calibration.half import HalfModel, to_half
from calibration.lint import error_lines
from calibration.model_file import load_model, profile_from_model, specs_from_model
from calibration.runtime import Runner, run_exposing
from calibration.table import check_lineage, load_table, table_path
from calibration.trt_cache import ranges_from_cache
from edge.devices import DEVICES, Device, device_named
from edge.engine_builder import engine_profiles
from edge.engine_job import EngineJob, EngineResult, run_job
from edge.errors import BuildError, UsageError
from edge.files import read_capped, sha256_of, storage_errors
from edge.manifest import Golden as ManifestGolden
from edge.manifest import GoldenCase, Model, Precision, Provenance, Variant
from edge.spec import Feeds, name_of_strings
from edge.tensorrt_library import TensorRtBackend
from host_tools.engine_record import (
    RECORD_SUFFIX,
    EngineFile,
    EngineRecord,
    read_record,
    write_file,
    write_record,
)
from host_tools.golden import golden_feeds, golden_tensors
from host_tools.onnx_source import draw_from_file
from host_tools.progress import progress_bar
from host_tools.remote import build_on
from host_tools.rtx_build import BUILD_TIMEOUT_S, build_rtx_engine
from host_tools.samples import samples_at

THIS = "this"
# Of an engine that is tried right after it was built; the bundle's own tolerances are tighter.
TRIAL_TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2, "int8": 0.5}
SEED = 0
MAX_CALIBRATION_CACHE_BYTES = 64 << 20
MASK = 1e30  # attention masks with the lowest float there is


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What to build.

    model: fp32 ONNX that `export` wrote. int8: what `calibrate` wrote from it. targets: names of
    `edge-kit targets`, or "this". on: user@host to build on instead. calibration_cache: int8
    ranges for the fp32 ONNX, instead of int8. dla_core: of the device that builds. golden: real
    samples; fp16 keeps nodes in fp32 where their values come near its limits, and engines are
    tried on them.
    """

    model: Path
    targets: tuple[str, ...]
    precisions: tuple[Precision, ...]
    out: Path
    int8: Path | None = None
    golden: Path | None = None
    tokenizer: Path | None = None
    keep_fp32: tuple[str, ...] = ()
    on: str | None = None
    level: int = 3
    calibration_cache: Path | None = None
    dla_core: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Graphs:
    """One precision of a model, for a TensorRT that takes it from flags and from types.

    typed_file: where the latter lies in the output folder.
    """

    precision: Precision
    source_sha256: str
    flags: onnx.ModelProto
    typed: onnx.ModelProto
    typed_file: str


def build_engines(options: BuildOptions, *, say: Callable[[str], None]) -> list[EngineRecord]:
    """Build everything that was asked for and return its records, in that order.

    Raises UsageError for an unknown target or a missing file, BuildError where TensorRT refuses.
    """
    devices = [None if name == THIS else _device(name) for name in options.targets]
    if options.on is None and not devices:
        raise UsageError("nothing to build for: give --target or --on; see `edge-kit targets`")
    if any(devices) and (options.calibration_cache, options.dla_core) != (None, None):
        raise UsageError(
            "--calibration-cache and --dla-core go with an engine that is built where it runs: "
            f"give --target {THIS} or --on"
        )
    source = load_model(options.model)
    inputs, outputs = specs_from_model(source)
    text = name_of_strings(*inputs, *outputs)
    if text is not None:
        raise BuildError(
            f"{options.model}: tensor {text!r} is BYTES, and TensorRT has no strings; pack the "
            "model without engines, ONNX Runtime serves it"
        )
    digest = sha256_of(options.model, follow_links=True)[0]
    feeds = _feeds(options, source)
    with storage_errors("write", options.out):
        options.out.mkdir(parents=True, exist_ok=True)
    records = []
    for precision in options.precisions:
        graphs = _graphs(options, source, digest, precision, feeds, say)
        with progress_bar() as bar:

            def progress(phase: str, done: int, total: int) -> bool:
                bar(phase[:24], done, total)
                return True

            if options.on is not None:
                job = _job(options, source, graphs, feeds)
                records.append(_kept(options, graphs, build_on(options.on, job, progress=progress)))
            for device in devices:
                if device is None:
                    result = run_job(_job(options, source, graphs, feeds), progress=progress)
                    records.append(_kept(options, graphs, result))
                elif device.kind == "desktop":
                    records.append(_built_for(options, device, graphs, progress))
                else:
                    records += _left_to(options, device, graphs, say)
    return records


def _device(name: str) -> Device:
    device = device_named(name)
    if device is None:
        known = ", ".join(d.name for d in DEVICES)
        raise UsageError(f"--target {name!r} is not known; give {THIS!r} or one of {known}")
    return device


def _feeds(options: BuildOptions, source: onnx.ModelProto) -> tuple[Feeds, ...]:
    """Return real samples, or random ones: enough to see whether an engine computes at all."""
    profile = profile_from_model(source)
    if options.golden is not None:
        samples = samples_at(options.golden, source, tokenizer=options.tokenizer)
        return golden_feeds(samples, profile)
    draw = draw_from_file(source)
    return (draw(np.random.default_rng(SEED), {n: r.opt for n, r in profile.ranges.items()}),)


def _graphs(
    options: BuildOptions,
    source: onnx.ModelProto,
    digest: str,
    precision: Precision,
    feeds: tuple[Feeds, ...],
    say: Callable[[str], None],
) -> _Graphs:
    typed = source
    if precision == "int8" and options.calibration_cache is None:
        if options.int8 is None:
            raise UsageError("--precision int8 needs --int8, the file that `calibrate` wrote")
        check_lineage(options.model, options.int8, load_table(table_path(options.int8)))
        source = load_model(options.int8)
    if precision != "fp32":
        half = to_half(source, keep=options.keep_fp32, amax=_amax(source, feeds))
        if half.kept:
            say(_kept_words(precision, half))
        typed = half.model
    file = f"trt-{precision}-typed.onnx"
    write_file(options.out, file, typed.SerializeToString())
    return _Graphs(
        precision=precision, source_sha256=digest, flags=source, typed=typed, typed_file=file
    )


def _amax(model: onnx.ModelProto, feeds: tuple[Feeds, ...]) -> dict[str, float]:
    """Return the largest magnitude of inner tensors; a mask is no magnitude, it may saturate."""
    names = [name for node in model.graph.node for name in node.output if name]
    values = run_exposing(model, feeds[0], names)
    return {
        name: float(np.abs(value[np.abs(value) < MASK]).max(initial=0.0))
        for name, value in values.items()
        if value.dtype == np.float32
    }


def _kept_words(precision: Precision, half: HalfModel) -> str:
    few = ", ".join(half.kept[:4]) + (", ..." if len(half.kept) > 4 else "")
    count = "1 node stays" if len(half.kept) == 1 else f"{len(half.kept)} nodes stay"
    return f"{precision}: {count} in fp32 ({few})"


def _built_for(
    options: BuildOptions,
    device: Device,
    graphs: _Graphs,
    progress: Callable[[str, int, int], bool],
) -> EngineRecord:
    """Build with TensorRT-RTX for a card that need not be here."""
    _refuse(error_lines(graphs.typed, "rtx"), options.out / graphs.typed_file)
    name = f"{device.name}-{graphs.precision}"
    built = build_rtx_engine(
        options.out / f"{name}.engine",
        device,
        options.out / graphs.typed_file,
        precision=graphs.precision,
        profiles=engine_profiles(profile_from_model(graphs.typed)),
        progress=progress,
    )
    return _record(options, graphs, name, "trt-rtx", built)


def _refuse(problems: list[str], path: Path) -> None:
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise BuildError(
            f"{path} cannot be built: {problems[0]}{more}; `edge-kit lint` shows everything"
        )


def _left_to(
    options: BuildOptions, device: Device, graphs: _Graphs, say: Callable[[str], None]
) -> list[EngineRecord]:
    """Record that a Jetson builds for itself, from the form that its TensorRT reads."""
    name = f"trt-{graphs.precision}"
    forms: tuple[tuple[str, bool | None, onnx.ModelProto], ...] = (
        (name, False, graphs.flags),
        (f"{name}-typed", True, graphs.typed),
    )
    if graphs.flags is graphs.typed:
        forms = ((f"{name}-typed", None, graphs.typed),)
    records = []
    for id_, typed, graph in forms:
        problems = error_lines(graph, "jetpack7" if typed else "jetpack6")
        if problems and typed is False:
            say(f"{id_} is left out, TensorRT before 10.12 cannot build it: {problems[0]}")
            continue
        _refuse(problems, options.out / graphs.typed_file)
        earlier = read_record(options.out / f"{id_}{RECORD_SUFFIX}")
        others = () if earlier is None else earlier.build_for
        record = EngineRecord(
            id=id_,
            backend="trt",
            precision=graphs.precision,
            source_sha256=graphs.source_sha256,
            file=f"{id_}.onnx",
            sha256=write_file(options.out, f"{id_}.onnx", graph.SerializeToString()),
            graph=graphs.typed_file,
            typed=typed,
            build_for=tuple(sorted({*others, device.name})),
        )
        write_record(options.out, record)
        records.append(record)
    return records


def _kept(options: BuildOptions, graphs: _Graphs, result: EngineResult) -> EngineRecord:
    name = f"{_plain(result.engine.device)}-{result.precision}"
    file = f"{name}.engine"
    built = EngineFile(
        file=file, sha256=write_file(options.out, file, result.plan), facts=result.engine
    )
    return _record(options, graphs, name, result.backend, built)


def _record(
    options: BuildOptions,
    graphs: _Graphs,
    id_: str,
    backend: TensorRtBackend,
    built: EngineFile,
) -> EngineRecord:
    record = EngineRecord(
        id=id_,
        backend=backend,
        precision=graphs.precision,
        source_sha256=graphs.source_sha256,
        file=built.file,
        sha256=built.sha256,
        graph=graphs.typed_file,
        engine=built.facts,
    )
    write_record(options.out, record)
    return record


def _plain(name: str) -> str:
    words = "".join(c if c.isalnum() else " " for c in name.lower().removeprefix("nvidia "))
    return "-".join(words.split())


def _job(
    options: BuildOptions,
    source: onnx.ModelProto,
    graphs: _Graphs,
    feeds: tuple[Feeds, ...],
) -> EngineJob:
    """Return the job with a golden set of ONNX Runtime's answers to the fp32 model."""
    inputs, outputs = specs_from_model(source)
    files: dict[str, bytes] = {}
    runner, cases = Runner(source), []
    for number, case in enumerate(feeds):
        answers = runner.run(case)
        cases.append(
            GoldenCase(
                inputs=golden_tensors(f"{number}/inputs", case, files.__setitem__),
                outputs=golden_tensors(f"{number}/outputs", answers, files.__setitem__),
            )
        )
    model = Model(
        name="trial",
        version="1",
        inputs=inputs,
        outputs=outputs,
        profile=profile_from_model(source),
        variants=(
            Variant(id="trial", backend="trt", precision=graphs.precision, files=("graph",)),
        ),
        preferences=(),
        golden=ManifestGolden(cases=tuple(cases), tolerance=TRIAL_TOLERANCE),
        provenance=Provenance(source="", opset=0, exporter="", tools={}),
    )
    return EngineJob(
        precision=graphs.precision,
        graph=graphs.flags.SerializeToString(),
        typed_graph=graphs.typed.SerializeToString(),
        model=model,
        golden=files,
        optimization_level=options.level,
        timeout_s=BUILD_TIMEOUT_S,
        calibration_cache=_ranges(options) if graphs.precision == "int8" else b"",
        dla_core=options.dla_core,
    )


def _ranges(options: BuildOptions) -> bytes:
    if options.calibration_cache is None:
        return b""
    content = read_capped(
        options.calibration_cache, max_bytes=MAX_CALIBRATION_CACHE_BYTES, follow_links=True
    )
    ranges_from_cache(content)  # better here than minutes later on the device
    return content
