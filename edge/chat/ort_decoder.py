"""ONNX Runtime on the CPU behind the Decoder seam."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edge.chat.decoder import FloatArray, IntArray
from edge.chat.ort_cache import OrtCache, bind_input, bind_output, cache_of
from edge.chat.spec import (
    DECODER_KEY,
    DecoderSpec,
    cache_inputs,
    cache_outputs,
    decoder_from_metadata,
)
from edge.errors import InferenceError, ModelError, first_line
from edge.libc import FlushedDenormals, return_free_memory
from edge.onnxruntime_library import (
    int8_saturates,
    load_onnxruntime,
    onnxruntime_errors,
    session_options,
)

# Steps of so few tokens come again in the same shape, so what is bound for them is kept.
_KEPT_TOKENS = 16
_KEPT_BINDINGS = 128
_LOG_SEVERITY = 3  # errors


class OrtDecoder:
    """A chat graph opened by ONNX Runtime; make it with `open`.

    Memory for tokens and logits is kept from step to step, and so are their addresses.
    """

    def __init__(self, session: Any, spec: DecoderSpec, cache: OrtCache, *, lanes: int) -> None:
        self.spec = spec
        self.lanes = lanes
        self.longest_step = spec.context
        self.grows = cache.grows
        self._session = session
        self._cache = cache
        self._flushed = FlushedDenormals()
        self._tokens = self._rows = np.empty(0, np.int64)
        self._start = np.empty(lanes, np.int64)
        self._logits = np.empty(0, np.float32)
        self._bindings: dict[tuple[int, int, int, int], Any] = {}

    @classmethod
    def open(
        cls, graph: Path, *, lanes: int, intra_op_threads: int | None, context: int | None = None
    ) -> OrtDecoder:
        """Open a graph by path, so that the weights beside it are memory-mapped.

        lanes: rows of the cache. intra_op_threads: None is one per physical core. context: to
        hold fewer positions than the graph could.
        Raises BackendUnavailableError without onnxruntime, ModelError if the graph does not open
        or is no chat graph.
        """
        ort = load_onnxruntime()
        options = _options(ort, intra_op_threads)
        try:
            with (
                FlushedDenormals()
            ):  # as ONNX Runtime changes the thread itself, if it is the first
                session = ort.InferenceSession(
                    str(graph), options, providers=["CPUExecutionProvider"]
                )
        except onnxruntime_errors() as error:
            raise ModelError(
                f"ONNX Runtime cannot open {graph}: {first_line(error)}; export it again, or "
                "install the onnxruntime version that the bundle was made with"
            ) from error
        return_free_memory()
        spec = _spec_of(session, graph)
        if context is not None:
            spec = replace(spec, context=min(context, spec.context))
        return cls(session, spec, cache_of(spec, lanes), lanes=lanes)

    def step(
        self,
        first: int,
        tokens: IntArray,
        start: IntArray,
        rows: IntArray,
        *,
        top: int | None = None,
    ) -> FloatArray:
        """Return logits FP32 [n, wanted, vocabulary], always all; see `decoder.Decoder`."""
        if self._session is None:
            raise InferenceError("the decoder is closed; open the model again")
        (lanes, count), wanted = tokens.shape, rows.shape[1]
        end = max(start.tolist()) + count
        if end > self.spec.context or not 0 <= first <= first + lanes <= self.lanes:
            raise ValueError(f"lanes {first}..{first + lanes - 1}, positions up to {end}")
        if self._cache.reserve(end):
            self._bindings.clear()
        self._make_room(lanes, count, wanted)
        logits = self._logits[: lanes * wanted].reshape(lanes, wanted, -1)
        if self._cache.joins_lanes:
            self._run(first, tokens, start, rows, logits)
        else:
            for lane in range(lanes):
                one = slice(lane, lane + 1)
                self._run(first + lane, tokens[one], start[one], rows[one], logits[one])
        return logits

    def copy_lane(self, source: int, target: int, length: int) -> None:
        """Make the first positions of a lane those of another."""
        self._cache.copy(source, target, length)

    def swap_lanes(self, one: int, other: int, length: int) -> None:
        """Exchange the first positions of two lanes."""
        self._cache.swap(one, other, length)

    def clear_lane(self, lane: int) -> None:
        """Make a lane all zero."""
        self._cache.clear(lane)

    def shrink(self, length: int) -> None:
        """Forget all positions from length on."""
        if self._cache.shrink(length):
            self._bindings.clear()

    def close(self) -> None:
        """Free the graph, its threads and its cache."""
        self._bindings.clear()
        self._session = None
        self._cache = cache_of(replace(self.spec, context=1), 1)

    def _make_room(self, lanes: int, count: int, wanted: int) -> None:
        sizes = (lanes * count, lanes * wanted)
        if sizes[0] > len(self._tokens) or sizes[1] > len(self._rows):
            self._bindings.clear()
            self._tokens = np.empty(max(sizes[0], len(self._tokens)), np.int64)
            self._rows = np.empty(max(sizes[1], len(self._rows)), np.int64)
            self._logits = np.empty((len(self._rows), self.spec.vocabulary), np.float32)

    def _run(
        self, first: int, tokens: IntArray, start: IntArray, rows: IntArray, logits: FloatArray
    ) -> None:
        (lanes, count), wanted = tokens.shape, rows.shape[1]
        self._tokens[: lanes * count].reshape(lanes, count)[:] = tokens
        self._rows[: lanes * wanted].reshape(lanes, wanted)[:] = rows
        self._start[:lanes] = start
        binding = self._binding(first, start, count, logits)
        try:
            with self._flushed:
                self._session.run_with_iobinding(binding)
        except onnxruntime_errors() as error:
            raise InferenceError(f"ONNX Runtime failed to run: {first_line(error)}") from error
        self._cache.store(first, start, count)

    def _binding(self, first: int, start: IntArray, count: int, logits: FloatArray) -> Any:
        lanes, wanted = logits.shape[:2]
        key = (first, lanes, count, wanted)
        binding = self._bindings.get(key)
        if binding is not None:
            return binding
        binding = self._session.io_binding()
        bind_input(binding, "input_ids", self._tokens[: lanes * count].reshape(lanes, count))
        bind_input(binding, "rows", self._rows[: lanes * wanted].reshape(lanes, wanted))
        bind_input(binding, "start", self._start[:lanes])
        bind_output(binding, "logits", logits)
        self._cache.bind(binding, first, start, count)
        if self._cache.keeps_address and count <= _KEPT_TOKENS:
            if len(self._bindings) >= _KEPT_BINDINGS:
                self._bindings.clear()
            self._bindings[key] = binding
        return binding


def _options(ort: Any, intra_op_threads: int | None) -> Any:
    options = session_options(ort) if int8_saturates() else ort.SessionOptions()
    options.intra_op_num_threads = intra_op_threads or 0
    options.log_severity_level = _LOG_SEVERITY
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    # Of int8 with a scale for each output: the largest block that the kernels know, not 32.
    options.add_session_config_entry("session.qdq_matmulnbits_block_size", "-1")
    # Weights that are packed for the kernels are freed then, instead of kept in an arena.
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    # Every length of a prompt would leave its own plan of memory behind.
    options.enable_mem_pattern = False
    return options


def _spec_of(session: Any, graph: Path) -> DecoderSpec:
    """Return what a graph says of itself, if its inputs and outputs agree."""
    text = session.get_modelmeta().custom_metadata_map.get(DECODER_KEY)
    if text is None:
        raise ModelError(
            f"{graph} is no chat graph: its metadata has no {DECODER_KEY}; export it with "
            "edge-kit export"
        )
    spec = decoder_from_metadata(text)
    for kind, nodes, expected in (
        ("inputs", session.get_inputs(), {"input_ids", "start", "rows", *cache_inputs(spec)}),
        ("outputs", session.get_outputs(), {"logits", *cache_outputs(spec)}),
    ):
        found = {node.name for node in nodes}
        if found != expected:
            wrong = ", ".join(sorted(found ^ expected))
            raise ModelError(
                f"{graph}: its {kind} are not those of a chat graph of form {spec.form!r} "
                f"({wrong}); export it again"
            )
    return spec
