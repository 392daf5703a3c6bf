"""Pack a bundle: models, golden set, measurements and evidence under one signed Manifest."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version as installed_version
from pathlib import Path

import onnx

from calibration.model_file import (
    load_model,
    profile_from_model,
    provenance_from_model,
    specs_from_model,
)
from calibration.processing import drop_tokenizer
from calibration.qdq import with_stored_int8
from calibration.table import (
    MAX_TABLE_BYTES,
    CalibrationTable,
    check_lineage,
    load_table,
    ort_path,
    table_path,
)
from edge import __version__
from edge.bundle import MANIFEST_NAME, SIGNATURE_NAME, blob_path
from edge.errors import UsageError
from edge.files import atomic_directory, read_capped, storage_errors
from edge.manifest import (
    SCHEMA_VERSION,
    Calibration,
    Golden,
    Manifest,
    Measurement,
    Model,
    Precision,
    Preference,
    Provenance,
    Variant,
    bytes_from_manifest,
    is_plain_name,
)
from edge.manifest_reading import manifest_from_bytes
from edge.ort_session import OrtSession
from edge.self_test import run_self_test
from edge.session import Session
from edge.spec import Profile, TensorSpec
from edge.trust import sign
from host_tools.batching import batching_of
from host_tools.blobs import BlobStore
from host_tools.chat.chat_pack import ChatPackRequest, pack_chat
from host_tools.drift_reference import add_reference
from host_tools.engine_record import records_in
from host_tools.golden import Run, golden_feeds, make_golden
from host_tools.keys import read_private_key
from host_tools.measure import cpu_threads, measure
from host_tools.memory_probe import (
    ProbeRequest,
    UnmeasuredError,
    peak_memory_bytes,
    values_from_feeds,
)
from host_tools.naming import check_names
from host_tools.pack_engines import engine_variants, reduced_runs
from host_tools.pack_processing import use_of_model
from host_tools.progress import progress_bar
from host_tools.samples import samples_at


@dataclass(frozen=True, slots=True, kw_only=True)
class PackRequest:
    """What goes into a bundle.

    fp32: an ONNX file that `export` wrote, or the folder of a chat model that `export-chat` wrote:
    that has its own golden prompts, and nothing else is asked of it. engines: the folder that
    `edge-kit build` wrote from fp32. class_names, detection, embedding, tokenizer: see
    `pack_processing`; tokenizer also reads golden samples that are text. golden: real samples, an
    .npz file, a folder of them, or text with a tokenizer. drift_data: samples that requests are
    compared with later; None takes the golden ones.
    threads: intra-op threads for the measurements; None means every CPU of this process.
    force: of a chat model, see `ChatPackRequest`. source: recorded in place of what the model
    itself says, such as the version in a registry that it is.
    version: of the bundle. model_version: what clients ask for, in /v2/models/M/versions/V.
    """

    out: Path
    name: str
    version: str
    fp32: Path
    golden: Path | None = None
    drift_data: Path | None = None
    model_version: str = "1"
    int8: Path | None = None
    engines: Path | None = None
    table: Path | None = None
    tokenizer: Path | None = None
    class_names: Path | None = None
    detection: str | None = None
    embedding: str | None = None
    key: Path | None = None
    threads: int | None = None
    force: bool = False
    source: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """The bundle that was written."""

    out: Path
    manifest: Manifest
    signed: bool


def pack(request: PackRequest, *, say: Callable[[str], None]) -> Packed:
    """Write the bundle at request.out, whole or not at all, and return its Manifest.

    Raises UsageError for missing files, GraphError if the int8 model was not calibrated from the
    fp32 model given, StorageError if the folder cannot be written or exists.
    """
    check_names(request.name, request.version)
    if not is_plain_name(request.model_version):
        raise UsageError(
            f"--model-version {request.model_version!r}: use letters, digits, '.', '-' and '_' only"
        )
    key = None if request.key is None else read_private_key(request.key)
    pack_model = _packer(request)
    with storage_errors("write", request.out), atomic_directory(request.out) as scratch:
        store = BlobStore(scratch)
        model = pack_model(store, scratch, say)
        if request.source is not None:
            model = replace(model, provenance=replace(model.provenance, source=request.source))
        manifest = Manifest(
            schema=SCHEMA_VERSION,
            name=request.name,
            version=request.version,
            created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            artifacts=store.artifacts,
            models=(model,),
        )
        content = bytes_from_manifest(manifest)
        _check_as_a_device(scratch, manifest_from_bytes(content), request.threads or cpu_threads())
        (scratch / MANIFEST_NAME).write_bytes(content)
        if key is not None:
            (scratch / SIGNATURE_NAME).write_bytes(sign(content, key, name=str(request.key)))
    return Packed(out=request.out, manifest=manifest, signed=key is not None)


def _packer(request: PackRequest) -> Callable[[BlobStore, Path, Callable[[str], None]], Model]:
    """Read what can be refused before anything is written; return what packs the model."""
    if request.fp32.is_dir():
        return functools.partial(_pack_chat_model, request)
    if request.force:
        raise UsageError(f"--force is for chat models, and {request.fp32} is none; leave it out")
    models: dict[Precision, onnx.ModelProto] = {"fp32": load_model(request.fp32)}
    if request.golden is None:
        raise UsageError("pack needs --golden: real samples for the self-test on the device")
    table, table_bytes = None, b""
    if request.int8 is not None:
        models["int8"] = with_stored_int8(load_model(ort_path(request.int8)))
        path = request.table or table_path(request.int8)
        table = load_table(path)
        table_bytes = read_capped(path, max_bytes=MAX_TABLE_BYTES, follow_links=True)
        check_lineage(request.fp32, request.int8, table)

    def pack_model(store: BlobStore, scratch: Path, say: Callable[[str], None]) -> Model:
        if table is not None:
            store.add(f"{request.name}/calibration.json", table_bytes)
        return _pack_model(request, models, table, store, scratch, say)

    return pack_model


def _pack_chat_model(
    request: PackRequest, store: BlobStore, scratch: Path, say: Callable[[str], None]
) -> Model:
    chat = ChatPackRequest(
        folder=request.fp32,
        engines=request.engines,
        name=request.name,
        version=request.model_version,
        threads=request.threads or cpu_threads(),
        force=request.force,
    )
    return pack_chat(chat, store, scratch, say=say)


def _check_as_a_device(scratch: Path, manifest: Manifest, threads: int) -> None:
    """Open the files that were written and run their self-test, as every agent will."""

    def read(path: str) -> bytes:
        artifact = manifest.artifact(path)
        return read_capped(blob_path(scratch, artifact.sha256), max_bytes=artifact.size)

    for model in manifest.models:
        if model.chat is not None:
            continue  # its golden logits were made of these very files
        for variant in model.variants:
            if variant.backend != "ort":
                continue  # tried on the device, in a child process
            graph = blob_path(scratch, manifest.artifact(variant.files[0]).sha256)
            session = _opened(graph, model.inputs, model.outputs, model.profile, threads)
            try:
                run_self_test(model, variant.precision, infer=session.run, read=read)
            finally:
                session.close()


def _opened(
    graph: Path,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    profile: Profile,
    threads: int,
) -> Session:
    return OrtSession.open(
        graph, inputs=inputs, outputs=outputs, profile=profile, intra_op_threads=threads
    )


def _pack_model(
    request: PackRequest,
    models: dict[Precision, onnx.ModelProto],
    table: CalibrationTable | None,
    store: BlobStore,
    scratch: Path,
    say: Callable[[str], None],
) -> Model:
    float_model = models["fp32"]
    inputs, outputs = specs_from_model(float_model)
    profile = profile_from_model(float_model)
    assert request.golden is not None  # noqa: S101 - see _packer
    samples = samples_at(request.golden, float_model, tokenizer=request.tokenizer)
    cases = golden_feeds(samples, profile)
    usual = samples
    if request.drift_data is not None:
        usual = samples_at(request.drift_data, float_model, tokenizer=request.tokenizer)
    threads = request.threads or cpu_threads()
    engines = request.engines or Path()
    records = () if request.engines is None else records_in(engines, request.fp32)
    use = use_of_model(
        float_model,
        store,
        prefix=request.name,
        tokenizer=request.tokenizer,
        class_names=request.class_names,
        detection=request.detection,
        embedding=request.embedding,
    )
    for each in models.values():
        drop_tokenizer(each)
    files = {p: store.add_model(f"{request.name}/{p}.onnx", m) for p, m in models.items()}
    paths = {artifact.path: blob_path(scratch, artifact.sha256) for artifact in store.artifacts}
    with contextlib.ExitStack() as stack:
        sessions: dict[str, Session] = {}
        for precision, names in files.items():
            session = _opened(paths[names[0]], inputs, outputs, profile, threads)
            stack.callback(session.close)
            sessions[precision] = session
        runs: list[tuple[Precision, Run]] = [(p, sessions[p].run) for p in files]
        golden: Golden = make_golden(
            cases,
            [*runs, *reduced_runs(records, engines)],
            store.add,
            prefix=f"{request.name}/golden",
        )
        batching, words = batching_of(
            inputs, outputs, profile, feeds=cases[-1], run=sessions["fp32"].run
        )
        say(words)
        runtime = f"onnxruntime {installed_version('onnxruntime')}"
        with progress_bar() as progress:
            measured = [
                measure(
                    sessions,
                    feeds,
                    threads=threads,
                    runtime=runtime,
                    tick=functools.partial(progress, f"measuring {number}/{len(cases)}"),
                )
                for number, feeds in enumerate(cases, 1)
            ]
    preference = _preference({p: measured[0][p] for p in files})
    say(preference.why)
    memory = {
        precision: _memory_bytes(
            ProbeRequest(
                graph=str(paths[names[0]]),
                inputs=inputs,
                outputs=outputs,
                profile=profile,
                threads=threads,
                values=values_from_feeds(cases[0]),
            ),
            precision,
            say,
        )
        for precision, names in files.items()
    }
    provenance = provenance_from_model(float_model)
    model = Model(
        name=request.name,
        version=request.model_version,
        inputs=inputs,
        outputs=outputs,
        profile=profile,
        variants=tuple(
            Variant(
                id=_variant_id(precision),
                backend="ort",
                precision=precision,
                files=names,
                measurements=tuple(batch[precision] for batch in measured),
                memory_bytes=memory[precision],
            )
            for precision, names in files.items()
        )
        + engine_variants(records, engines, store, prefix=f"{request.name}/engines"),
        preferences=(preference,),
        golden=golden,
        accuracy=None if table is None else table.ort.accuracy,
        calibration=None
        if table is None
        else Calibration(
            method=table.method,
            samples=table.samples,
            data_sha256=table.data_sha256,
            table=f"{request.name}/calibration.json",
        ),
        image=use.image,
        text=use.text,
        batching=batching,
        classes=use.classes,
        detection=use.detection,
        embedding=use.embedding,
        provenance=Provenance(
            source=provenance.source,
            opset=provenance.opset,
            exporter=provenance.exporter,
            tools={**provenance.tools, "edge-kit": __version__},
        ),
    )
    served = paths[files[next(p for p in files if _variant_id(p) == preference.variant)][0]]
    session = _opened(served, inputs, outputs, profile, threads)
    try:
        add_reference(model, usual, session.run, store, scratch, say=say)
    finally:
        session.close()
    return model


def _memory_bytes(request: ProbeRequest, precision: Precision, say: Callable[[str], None]) -> int:
    """Return what a variant takes of memory, or 0 where this machine cannot tell."""
    try:
        return peak_memory_bytes(request)
    except UnmeasuredError as error:
        say(f"memory of {precision} not measured: {error}")
        return 0


def _variant_id(precision: Precision) -> str:
    return f"ort-{precision}"


def _preference(measured: dict[Precision, Measurement]) -> Preference:
    """Return the variant with the lowest median latency, and the sentence that says so."""
    best = min(measured, key=lambda precision: measured[precision].p50_ms)
    here = measured[best]
    where = f"batch {here.batch}, {here.threads} threads, {here.device}"
    if len(measured) == 1:
        why = f"{best} is the only precision in the bundle (p50 {here.p50_ms:.3f} ms; {where})"
    else:
        rivals = ", ".join(f"{p} {m.p50_ms:.3f} ms" for p, m in measured.items() if p != best)
        why = f"{best} is faster, p50 {here.p50_ms:.3f} ms against {rivals} ({where})"
    return Preference(backend="ort", variant=_variant_id(best), why=why)
