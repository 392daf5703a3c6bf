"""Chat engines for devices, from a Hugging Face folder: what `edge-kit build` does for models.

RTX card     TensorRT-RTX builds for its SM on any x86 host, GPU or not
Jetson       not here: the graph and its weights go into the bundle and the agent builds
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from edge.chat.layered import MODEL_FILE, WEIGHTS_FILE, LayeredModel
from edge.chat.scheduler import SchedulerOptions
from edge.chat.spec import DecoderSpec, Form
from edge.devices import Device
from edge.errors import BuildError, UsageError
from edge.files import sha256_of, storage_errors
from edge.installed import installed_backends
from edge.manifest import Precision
from edge.tensorrt_library import TensorRtBackend
from host_tools.chat.engine import (
    EngineShapes,
    engine_profiles,
    forms_for,
    write_engine_graph,
)
from host_tools.chat.fitting import known_device
from host_tools.chat.layered import write_layered
from host_tools.chat.llm_spec import llm_spec_from_folder
from host_tools.chat.writer import weights_path
from host_tools.engine_record import RECORD_SUFFIX, EngineRecord, read_record, write_record
from host_tools.errors import ExportError
from host_tools.progress import progress_bar
from host_tools.rtx_build import build_rtx_engine

DEFAULT_CAPACITY = 4096
SMALLEST_PIECE = 256
# What the newest JetPack of an SM brings at least, as far as chat graphs care.
JETSON_TENSORRT = {"7.2": (8, 5), "8.7": (10, 3), "11.0": (10, 13)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatBuildOptions:
    """What to build.

    folder: of Hugging Face. targets: names of `edge-kit targets`. context: positions of a lane's
    cache; None is what the model was made for, at most DEFAULT_CAPACITY. lanes, chunk: see
    `EngineShapes`. form: None is the best that the target builds. adapters: see `WriteOptions`.
    """

    folder: Path
    targets: tuple[str, ...]
    precisions: tuple[Precision, ...]
    out: Path
    context: int | None = None
    lanes: int = 1
    chunk: int = 512
    form: Form | None = None
    adapters: tuple[Path, ...] = ()
    level: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """A graph in the output folder."""

    path: Path
    decoder: DecoderSpec


def build_chat_engines(
    options: ChatBuildOptions, *, say: Callable[[str], None]
) -> list[EngineRecord]:
    """Build everything that was asked for and return its records, in that order.

    Raises UsageError for an unknown target or what it cannot have, ExportError for a folder that
    cannot be written, BuildError where TensorRT refuses.
    """
    devices = [known_device(name) for name in options.targets]
    if not devices:
        raise UsageError("nothing to build for: give --target; see `edge-kit targets`")
    made_for = llm_spec_from_folder(options.folder).context
    capacity = min(made_for, DEFAULT_CAPACITY) if options.context is None else options.context
    shapes = EngineShapes(lanes=options.lanes, capacity=capacity, chunk=options.chunk)
    if min(shapes.lanes, shapes.chunk) < 1:
        raise UsageError(f"lanes {shapes.lanes}, chunk {shapes.chunk}: both must be at least 1")
    forms = {
        (device.name, precision): _forms(device, precision, options)
        for precision in options.precisions
        for device in devices
    }
    with storage_errors("write", options.out):
        options.out.mkdir(parents=True, exist_ok=True)
    build = _Build(options, shapes, source_sha256(options.folder, options.adapters), say)
    records = []
    for precision in options.precisions:
        for device in devices:
            found = build.in_pieces(device, precision)
            if device.kind == "desktop":
                records.append(build.for_desktop(device, precision, forms[device.name, precision]))
            elif found is None:
                records.append(
                    build.for_jetson(device, precision, forms[device.name, precision][0])
                )
            if found is not None:
                records.append(found)
    return records


def source_sha256(folder: Path, adapters: tuple[Path, ...] = ()) -> str:
    """Return the digest of what a chat model comes from: its config, its weights, its adapters."""
    digest = hashlib.sha256()
    for one in (folder, *adapters):
        for path in sorted([*one.glob("*config.json"), *one.glob("*.safetensors")]):
            digest.update(f"{path.name} {sha256_of(path, follow_links=True)[0]}\n".encode())
    return digest.hexdigest()


class _Build:
    """Builds for one device after the other, from graphs that are written once."""

    def __init__(
        self,
        options: ChatBuildOptions,
        shapes: EngineShapes,
        source: str,
        say: Callable[[str], None],
    ) -> None:
        self._options = options
        self._shapes = shapes
        self._source = source
        self._say = say
        self._written: dict[tuple[Precision, Form], _Written] = {}
        self._in_pieces: dict[str, LayeredModel] = {}

    def for_desktop(
        self, device: Device, precision: Precision, forms: tuple[Form, ...]
    ) -> EngineRecord:
        """Build in the first form that TensorRT-RTX takes, and record it as not run."""
        *earlier, last = forms
        for form in earlier:
            try:
                return self._built(device, precision, form)
            except BuildError as error:
                self._say(f"{precision}: {form} does not build, trying {last}: {error}")
        return self._built(device, precision, last)

    def for_jetson(self, device: Device, precision: Precision, form: Form) -> EngineRecord:
        """Record that a Jetson builds for itself."""
        written = self._graph("trt", precision, form)
        name = written.path.stem
        before = read_record(self._options.out / f"{name}{RECORD_SUFFIX}")
        others = before.build_for if before and before.source_sha256 == self._source else ()
        return self._kept(
            EngineRecord(
                id=name,
                backend="trt",
                precision=precision,
                source_sha256=self._source,
                file=written.path.name,
                sha256=sha256_of(written.path)[0],
                graph=written.path.name,
                weights=weights_path(written.path).name,
                decoder=written.decoder,
                build_for=tuple(sorted({*others, device.name})),
            )
        )

    def in_pieces(self, device: Device, precision: Precision) -> EngineRecord | None:
        """Write the model in pieces, from whose graphs a device builds its engines in a minute.

        None if this model or precision has no such form.
        """
        if precision not in {"fp16", "fp32"}:
            return None
        backend: TensorRtBackend = "trt-rtx" if device.kind == "desktop" else "trt"
        name = f"{backend}-{precision}-pieces"
        folder = self._options.out / name
        if name not in self._in_pieces:
            shutil.rmtree(folder, ignore_errors=True)
            self._say(f"{precision}: the model in pieces, for devices that build")
            try:
                self._in_pieces[name] = write_layered(
                    self._options.folder,
                    folder,
                    lanes=self._shapes.lanes,
                    chunks=_chunks(self._shapes),
                    capacities=_capacities(self._shapes.capacity),
                    half=precision == "fp16",
                    adapters=self._options.adapters,
                )
            except ExportError as error:
                self._say(f"{precision}: not in pieces: {error}")
                return None
        model = self._in_pieces[name]
        before = read_record(self._options.out / f"{name}{RECORD_SUFFIX}")
        others = before.build_for if before and before.source_sha256 == self._source else ()
        description = f"{name}/{MODEL_FILE}"
        return self._kept(
            EngineRecord(
                id=name,
                backend=backend,
                precision=precision,
                source_sha256=self._source,
                file=description,
                sha256=sha256_of(self._options.out / description)[0],
                graph=description,
                decoder=model.decoder,
                build_for=tuple(sorted({*others, device.name})),
                pieces=(
                    f"{name}/{WEIGHTS_FILE}",
                    *(f"{name}/{piece.file}" for piece in model.pieces),
                ),
            )
        )

    def _built(self, device: Device, precision: Precision, form: Form) -> EngineRecord:
        written = self._graph("trt-rtx", precision, form)
        name = f"{device.name}-{precision}"
        model = onnx.load(str(written.path), load_external_data=False)
        with progress_bar() as bar:

            def progress(phase: str, done: int, total: int) -> bool:
                bar(phase[:24], done, total)
                return True

            built = build_rtx_engine(
                self._options.out / f"{name}.engine",
                device,
                written.path,
                precision=precision,
                profiles=engine_profiles(model, self._shapes, precision),
                progress=progress,
                level=self._options.level,
            )
        return self._kept(
            EngineRecord(
                id=name,
                backend="trt-rtx",
                precision=precision,
                source_sha256=self._source,
                file=built.file,
                sha256=built.sha256,
                graph=written.path.name,
                weights=weights_path(written.path).name,
                engine=built.facts,
                decoder=written.decoder,
            )
        )

    def _graph(self, backend: str, precision: Precision, form: Form) -> _Written:
        if (precision, form) not in self._written:
            out = self._options.out / f"{backend}-{precision}.onnx"
            decoder = write_engine_graph(
                self._options.folder,
                out,
                form=form,
                precision=precision,
                shapes=self._shapes,
                adapters=self._options.adapters,
                say=self._say,
            )
            self._written = {key: w for key, w in self._written.items() if w.path != out}
            fixed = replace(decoder, lanes=self._shapes.lanes)
            self._written[precision, form] = _Written(path=out, decoder=fixed)
        return self._written[precision, form]

    def _kept(self, record: EngineRecord) -> EngineRecord:
        write_record(self._options.out, record)
        return record


def _chunks(shapes: EngineShapes) -> tuple[int, ...]:
    """Return the sizes of steps of several tokens: the whole chunk, and what others wait for."""
    chunk = min(shapes.chunk, shapes.capacity)
    return tuple(sorted({min(SchedulerOptions().shared_chunk, chunk), chunk}))


def _capacities(context: int) -> tuple[int, ...]:
    """Return the sizes of a cache that are worth an engine each: a quarter, and all of it."""
    return tuple(sorted({min(context, max(SMALLEST_PIECE, context // 4)), context}))


def _forms(device: Device, precision: Precision, options: ChatBuildOptions) -> tuple[Form, ...]:
    """Return the forms to try; raises UsageError if the device's TensorRT has none."""
    if device.kind == "desktop":
        version = installed_backends().get("tensorrt_rtx", "1.0")
        major, minor = (int(part) for part in version.split(".")[:2])
        forms = forms_for("trt-rtx", (major, minor), precision)
    elif device.sm in JETSON_TENSORRT:
        forms = forms_for("trt", JETSON_TENSORRT[device.sm], precision)
    else:
        raise UsageError(f"--target {device.name}: its JetPack has no TensorRT 8.5, chat needs it")
    return forms if options.form is None else (options.form,)
