"""The engines of a chat model in pieces: one execution context each, addresses given per run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edge.chat.layered import LayeredModel, Piece
from edge.engine_builder import BuiltEngine, EngineRequest, engine_from_onnx
from edge.errors import InferenceError, ModelError
from edge.tensorrt_library import TensorRT
from edge.trt_engine import new_context, scratch_bytes
from edge.trt_tensors import dtype_of

Addresses = Mapping[str, int]


class PieceEngine(Protocol):
    """An opened piece, whose shapes are fixed."""

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return the numpy type of an input or output."""

    def enqueue(self, addresses: Addresses, stream: Any) -> None:
        """Put a run on a stream, with every tensor at its device address."""

    def close(self) -> None:
        """Free it."""


class TrtPiece:
    """A deserialized engine; all pieces of a model share the memory for activations."""

    def __init__(self, library: TensorRT, runtime: Any, engine: Any) -> None:
        self._library = library
        self._runtime = runtime  # must outlive the engine
        self._engine = engine
        self._context: Any = None

    @classmethod
    def open(cls, plan: bytes, library: TensorRT) -> TrtPiece:
        """Deserialize verified bytes; raises ModelError if TensorRT refuses them."""
        library.messages.clear()
        runtime = library.module.Runtime(library.logger)
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise ModelError(
                f"TensorRT {library.version} refuses the engine: {library.first_error()}; build it "
                "for this device"
            )
        return cls(library, runtime, engine)

    @property
    def scratch_bytes(self) -> int:
        """How much memory for activations a run needs."""
        return scratch_bytes(self._engine)

    def use(self, scratch: Any, cuda: Any) -> None:
        """Make the execution context, on memory for activations that the caller keeps."""
        self._context = new_context(self._library, self._engine, scratch, cuda)

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return the numpy type of an input or output."""
        return dtype_of(self._engine, name)

    def enqueue(self, addresses: Addresses, stream: Any) -> None:
        """Put a run on a stream, with every tensor at its device address."""
        context = self._context
        for name, address in addresses.items():
            context.set_tensor_address(name, address)
        if not context.execute_async_v3(stream.handle):
            raise InferenceError(f"TensorRT failed to run: {self._library.last_error()}")

    def close(self) -> None:
        """Free context and engine."""
        self._context = self._engine = self._runtime = None


def build_pieces(
    model: LayeredModel,
    folder: Path,
    library: TensorRT,
    *,
    timing_cache: bytes = b"",
    pieces: Iterable[Piece] | None = None,
) -> dict[Piece, BuiltEngine]:
    """Build the engines of a folder's graphs; raises BuildError."""
    built: dict[Piece, BuiltEngine] = {}
    for piece in model.pieces if pieces is None else pieces:
        request = EngineRequest(
            onnx=folder / piece.file,
            precision="fp16" if model.decoder.cache == "FP16" else "fp32",
            profiles=(),
            timing_cache=timing_cache,
        )
        built[piece] = engine_from_onnx(request, library)
        timing_cache = built[piece].timing_cache
    return built
