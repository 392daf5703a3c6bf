"""Packs what `export_chat` wrote: the graphs of a chat model, and the evidence for them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version as installed_version
from pathlib import Path

import numpy as np
import onnx
from onnx import external_data_helper

from edge import __version__
from edge.bundle import blob_path
from edge.chat.facts import ChatFacts
from edge.chat.golden import golden_logits
from edge.chat.ort_decoder import OrtDecoder
from edge.errors import UsageError
from edge.files import read_capped
from edge.manifest import (
    LOGITS,
    TOKENS,
    Measurement,
    Model,
    Precision,
    Preference,
    Provenance,
    Variant,
)
from edge.spec import AnyArray, Feeds, Profile
from host_tools.blobs import BlobStore
from host_tools.chat.chat_export import (
    TEMPLATE_NAME,
    TOKENIZER_NAME,
    ChatExport,
    read_export,
)
from host_tools.chat.fitting import check_engines
from host_tools.chat.talk_files import MAX_TOKENIZER_BYTES
from host_tools.chat.writer import weights_path
from host_tools.engine_record import EngineRecord, records_of
from host_tools.golden import FLOAT_TOLERANCE, make_golden
from host_tools.measure import measure
from host_tools.progress import progress_bar

EXPORTER = "edge-kit chat"
# Of logits, where the graph in ONNX Runtime's form is not there to measure it.
ENGINE_TOLERANCE: dict[Precision, float] = {"fp32": FLOAT_TOLERANCE, "fp16": 0.02}
MEASURED_AT = 128  # tokens that are in the cache when a step is measured


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPackRequest:
    """What becomes one model of a bundle.

    folder: of `export_chat`. engines: of `build_chat_engines`. name, version: of the model. force:
    also what cannot run on the devices that its engines are for.
    """

    folder: Path
    engines: Path | None = None
    name: str
    version: str
    threads: int
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ran:
    """What one graph gave: logits of each golden prompt, and how long one token takes."""

    logits: tuple[AnyArray, ...]
    measurement: Measurement


def pack_chat(
    request: ChatPackRequest, store: BlobStore, scratch: Path, *, say: Callable[[str], None]
) -> Model:
    """Put a chat model's files into the store of a bundle at scratch, and return it.

    Raises UsageError for engines of another model, and GateError for those that cannot run.
    """
    record = read_export(request.folder)
    built = () if request.engines is None else _records(request.engines, record)
    engines = request.engines or Path()
    check_engines(built, engines, record.widths, force=request.force, say=say)
    prefix = request.name
    store.add(f"{prefix}/{TOKENIZER_NAME}", _content(request.folder / TOKENIZER_NAME))
    if record.has_template:
        store.add(f"{prefix}/{TEMPLATE_NAME}", _content(request.folder / TEMPLATE_NAME))
    files = {
        v.precision: _add_graph(
            request.folder / v.file,
            weights_path(request.folder / v.file),
            f"{prefix}/{v.precision}.onnx",
            store,
            scratch,
        )
        for v in record.variants
    }
    paths = {artifact.path: blob_path(scratch, artifact.sha256) for artifact in store.artifacts}
    cases = tuple({TOKENS: np.array(tokens, np.int64)} for tokens in record.golden)
    ran = {}
    for variant in record.variants:
        say(f"running {variant.precision}")
        graph = paths[files[variant.precision][0]]
        ran[variant.precision] = _run(graph, cases, request.threads)
    golden = make_golden(
        cases,
        [(precision, _lookup(cases, one)) for precision, one in ran.items()],
        store.add,
        prefix=f"{prefix}/golden",
    )
    tolerance = dict(golden.tolerance)
    for precision in {one.precision for one in built} - tolerance.keys():
        tolerance[precision] = ENGINE_TOLERANCE[precision]
    preference = _preference({precision: one.measurement for precision, one in ran.items()})
    say(preference.why)
    return Model(
        name=request.name,
        version=request.version,
        inputs=(),
        outputs=(),
        profile=Profile(ranges={}),
        variants=tuple(
            Variant(
                id=f"ort-{variant.precision}",
                backend="ort",
                precision=variant.precision,
                files=files[variant.precision],
                measurements=(ran[variant.precision].measurement,),
                decoder=variant.decoder,
                quality=variant.quality,
            )
            for variant in record.variants
        )
        + tuple(_engine(engines, one, prefix, store, scratch) for one in built),
        preferences=(preference,),
        golden=replace(golden, tolerance=tolerance),
        chat=_facts(record, prefix),
        provenance=_provenance(record, paths[files[record.variants[0].precision][0]]),
    )


def _content(path: Path) -> bytes:
    return read_capped(path, max_bytes=MAX_TOKENIZER_BYTES, follow_links=True)


def _records(engines: Path, record: ChatExport) -> tuple[EngineRecord, ...]:
    """Return what was built from the same model as the graphs, and can be tested like them."""
    found = records_of(engines, record.source_sha256, record.source)
    exported = {variant.precision for variant in record.variants}
    for one in found:
        if one.precision not in exported and one.precision not in ENGINE_TOLERANCE:
            raise UsageError(
                f"{one.id} is {one.precision}, and nothing tells how far from fp32 that is: "
                f"export the model with --precision {one.precision} too"
            )
    return found


def _engine(
    folder: Path, record: EngineRecord, prefix: str, store: BlobStore, scratch: Path
) -> Variant:
    """Store an engine, or the graph that a device builds one from, and return its variant."""
    name = f"{prefix}/engines/{record.file}"
    if record.engine is not None or record.pieces:
        files: tuple[str, ...] = tuple(
            _add_file(folder / file, f"{prefix}/engines/{file}", store, scratch)
            for file in (record.file, *record.pieces)
        )
    else:
        assert record.weights is not None  # noqa: S101 - a chat graph has them beside it
        files = _add_graph(folder / record.file, folder / record.weights, name, store, scratch)
    return Variant(
        id=record.id,
        backend=record.backend,
        precision=record.precision,
        files=files,
        engine=record.engine,
        typed=record.typed,
        build_for=record.build_for,
        decoder=record.decoder,
    )


def _add_file(file: Path, name: str, store: BlobStore, scratch: Path) -> str:
    copy = scratch / f"{file.name}.copy"
    shutil.copyfile(file, copy)
    return store.add_file(name, copy).path


def _add_graph(
    graph: Path, weights: Path, name: str, store: BlobStore, scratch: Path
) -> tuple[str, ...]:
    """Copy a graph and its weights; the graph then names them by their digest."""
    stored = _add_file(weights, f"{name}.weights", store, scratch)
    digest = store.artifact(stored).sha256
    model = onnx.load(str(graph), load_external_data=False)
    for tensor in model.graph.initializer:
        if external_data_helper.uses_external_data(tensor):
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = digest
    store.add(name, model.SerializeToString())
    return name, stored


def _run(graph: Path, cases: tuple[Feeds, ...], threads: int) -> _Ran:
    """Open a graph, run the golden prompts, and measure a step; then it is closed again."""
    decoder = OrtDecoder.open(graph, lanes=1, intra_op_threads=threads)
    try:
        logits = tuple(golden_logits(decoder, case[TOKENS]) for case in cases)
        step = _OneToken(decoder)
        with progress_bar() as progress:
            measured = measure(
                {"step": step},
                {TOKENS: np.zeros((1, 1), np.int64)},
                threads=threads,
                runtime=f"onnxruntime {installed_version('onnxruntime')}",
                tick=lambda done, total: progress("measuring", done, total),
            )
    finally:
        decoder.close()
    return _Ran(logits=logits, measurement=measured["step"])


class _OneToken:
    """The step that makes a token of an answer, for `measure`."""

    def __init__(self, decoder: OrtDecoder) -> None:
        self._decoder = decoder
        self._start = np.array([min(MEASURED_AT, decoder.spec.context - 1)])

    def run(self, feeds: Feeds) -> dict[str, AnyArray]:
        """Run one token behind MEASURED_AT others; what these are makes no difference in time."""
        rows = np.zeros((1, 1), np.int64)
        return {LOGITS: self._decoder.step(0, feeds[TOKENS], self._start, rows)}


def _lookup(cases: tuple[Feeds, ...], ran: _Ran) -> Callable[[Feeds], dict[str, AnyArray]]:
    """Return what gives the logits that a graph gave, as it is closed already."""
    number = {id(case): i for i, case in enumerate(cases)}
    return lambda feeds: {LOGITS: ran.logits[number[id(feeds)]]}


def _facts(record: ChatExport, prefix: str) -> ChatFacts:
    return ChatFacts(
        tokenizer=f"{prefix}/{TOKENIZER_NAME}",
        template=f"{prefix}/{TEMPLATE_NAME}" if record.has_template else None,
        tokens=record.tokens,
        sampling=record.sampling,
    )


def _provenance(record: ChatExport, graph: Path) -> Provenance:
    model = onnx.load(str(graph), load_external_data=False)
    return Provenance(
        source=record.source,
        opset=model.opset_import[0].version,
        exporter=EXPORTER,
        tools={**record.tools, "edge-kit": __version__},
    )


def _preference(measured: dict[Precision, Measurement]) -> Preference:
    """Return the variant whose step is quickest, and the sentence that says so."""
    best = min(measured, key=lambda precision: measured[precision].p50_ms)
    here = measured[best]
    where = f"{here.threads} threads, {here.device}"
    rates = ", ".join(f"{p} {1e3 / m.p50_ms:.1f}" for p, m in measured.items() if p != best)
    against = f" against {rates}" if rates else ""
    why = f"{best} makes {1e3 / here.p50_ms:.1f} tokens/s{against} ({where})"
    return Preference(backend="ort", variant=f"ort-{best}", why=why)
