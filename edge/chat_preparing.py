"""Makes a variant of a chat model ready to be opened: its graph, its engine, or its pieces.

Engines of pieces are built in a child process, kept like those of other models, and opened by the
bytes that the cache has authenticated. They are tried in the agent's own process: what they are
built from is part of the verified bundle, and none comes from elsewhere. Whole ones: `chat_whole`.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from edge.bundle import Bundle
from edge.chat.decoder import Decoder
from edge.chat.layered import LayeredModel, Piece, WeightsFile, layered_model_from_bytes
from edge.chat.ort_decoder import OrtDecoder
from edge.chat.room import Room
from edge.chat.spec import DecoderSpec
from edge.chat.trt_decoder import TrtDecoder
from edge.chat_whole import OpenDecoder, WholePreparer
from edge.choice import Candidate
from edge.config import AgentConfig
from edge.engine_builder import EngineRequest, Progress
from edge.engine_cache import EngineCache, cache_key
from edge.engine_child import BuildRequest
from edge.engine_process import AttemptError, build
from edge.errors import EdgeError, ModelError
from edge.files import read_capped
from edge.manifest import Variant
from edge.sealed import memory_content, memory_file
from edge.target import Target, machine_facts
from edge.tensorrt_library import TensorRtBackend, load_tensorrt

logger = logging.getLogger(__name__)

# What it returns opens the variant in the thread that will own the decoder.
PrepareDecoder = Callable[[Bundle, Candidate], OpenDecoder]


def decoder_spec(variant: Variant) -> DecoderSpec:
    """Return what the graph of a chat model's variant is."""
    assert variant.decoder is not None  # noqa: S101 - checked with the Manifest
    return variant.decoder


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pieces:
    """A model in pieces, and the artifact of each of its files."""

    model: LayeredModel
    weights: str
    graphs: dict[Piece, str]


class DecoderPreparer:
    """Prepares the variants of chat models on one machine; `prepare` is a PrepareDecoder.

    progress: told of every step of a build. stop: ends a running child.
    """

    def __init__(
        self,
        config: AgentConfig,
        target: Target,
        *,
        progress: Progress,
        stop: threading.Event,
    ) -> None:
        self._config = config
        self._target = target
        self._progress = progress
        self._stop = stop
        self._cache = EngineCache(config.cache, max_bytes=config.cache_bytes)
        self._whole = WholePreparer(config, target, self._cache, progress=progress, stop=stop)

    def prepare(self, bundle: Bundle, candidate: Candidate) -> OpenDecoder:
        """Return what opens the candidate; raises AttemptError with the code of the refusal."""
        variant = candidate.variant
        if variant.backend == "ort":
            return lambda room: _opened_graph(bundle, variant, room, self._config.intra_op_threads)
        if variant.engine is not None or decoder_spec(variant).form != "layered":
            return self._whole.prepare(bundle, candidate, variant.backend)
        pieces = _pieces_of(bundle, variant)
        plans = self._plans(bundle, variant, variant.backend, pieces)
        backend = variant.backend

        def opened(room: Room) -> Decoder:
            spec = replace(pieces.model.decoder, context=room.context)
            return TrtDecoder.open(
                replace(pieces.model, decoder=spec),
                WeightsFile(bundle.path(pieces.weights), pieces.model),
                plans,
                library=load_tensorrt(backend),
            )

        return opened

    def _plans(
        self, bundle: Bundle, variant: Variant, backend: TensorRtBackend, pieces: _Pieces
    ) -> dict[Piece, bytes]:
        """Return the engines of all pieces, those of an earlier start among them."""
        plans: dict[Piece, bytes] = {}
        timings = b""
        for number, (piece, path) in enumerate(pieces.graphs.items()):
            digest = bundle.manifest.artifact(path).sha256
            key = cache_key(
                "piece", digest, variant.precision, machine_facts(self._target, backend)
            )
            entry = self._cache.get(key, float)
            if entry is not None:
                plans[piece] = bytes(entry.content.view())
                entry.content.close()
                continue
            self._progress(f"{piece.file} ({number + 1} of {len(pieces.graphs)})", 0, 1)
            logger.info("building an engine from %s", path)
            plans[piece], timings, seconds = self._built(bundle, variant, backend, path, timings)
            try:
                self._cache.put(key, plans[piece], seconds)
            except EdgeError as error:
                logger.warning("not cached, so the next start takes as long: %s", error)
        return plans

    def _built(
        self,
        bundle: Bundle,
        variant: Variant,
        backend: TensorRtBackend,
        path: str,
        timings: bytes,
    ) -> tuple[bytes, bytes, float]:
        """Return an engine, what building it has learnt of this device, and how long it took."""
        engine, known = memory_file(), memory_file()
        try:
            os.write(known, timings)
            report = build(
                BuildRequest(
                    backend=backend,
                    request=EngineRequest(
                        onnx=bundle.path(path), precision=variant.precision, profiles=()
                    ),
                    engine=engine,
                    timing_cache=known,
                ),
                timeout_s=self._config.build_timeout_s,
                progress=self._progress,
                stop=self._stop,
            )
            return memory_content(engine), memory_content(known), report.seconds
        finally:
            os.close(engine)
            os.close(known)


def _pieces_of(bundle: Bundle, variant: Variant) -> _Pieces:
    """Return what the files of a variant are; raises AttemptError."""
    description, weights, *graphs = variant.files
    size = bundle.manifest.artifact(description).size
    try:
        model = layered_model_from_bytes(
            read_capped(bundle.path(description), max_bytes=size), description
        )
        if model.decoder != variant.decoder:
            raise ModelError(
                f"{description} is not the model that the manifest describes; pack it again"
            )
        named = {path.rpartition("/")[2]: path for path in graphs}
        missing = [piece.file for piece in model.pieces if piece.file not in named]
        if missing:
            raise ModelError(f"{description}: no graph {missing[0]} in the bundle; pack it again")
    except EdgeError as error:
        raise AttemptError("open-failed", str(error)) from error
    return _Pieces(
        model=model,
        weights=weights,
        graphs={piece: named[piece.file] for piece in model.pieces},
    )


def _opened_graph(bundle: Bundle, variant: Variant, room: Room, threads: int | None) -> Decoder:
    decoder = OrtDecoder.open(
        bundle.path(variant.files[0]),
        lanes=room.lanes,
        intra_op_threads=threads,
        context=room.context,
    )
    if decoder.spec != replace(decoder_spec(variant), context=room.context):
        decoder.close()
        raise ModelError(
            f"variant {variant.id!r} is not the chat graph that the manifest describes; pack the "
            "bundle again"
        )
    return decoder
