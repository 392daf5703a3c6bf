"""TensorRT behind the Decoder seam, for a chat model in pieces.

A step of one token in each lane is one CUDA graph: the inputs go in as one copy, every layer runs
through the same engine with its own weights, and of the logits only the likeliest come back if
whoever asks can do with them. A step of several tokens runs lane by lane, layer by layer.
Everything lives on the device's primary context, in the thread that called `open`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edge.chat.decoder import FloatArray, IntArray
from edge.chat.layered import LIKELIEST, LayeredModel, Piece, WeightSource
from edge.chat.trt_base import DeviceDecoder
from edge.chat.trt_buffers import SparseRows, StepInputs, Tail
from edge.chat.trt_cache import TrtCache
from edge.chat.trt_piece import PieceEngine, TrtPiece
from edge.chat.trt_replay import Capture, Replay, captured
from edge.cuda_graph import CudaGraph
from edge.cuda_library import PrimaryContext, load_cuda
from edge.errors import ModelError
from edge.spec import AnyArray
from edge.tensorrt_library import TensorRT

CHUNK_BYTES = 64 << 20  # of weights on their way to the device


class TrtDecoder(DeviceDecoder):
    """A chat model whose pieces are engines; make it with `open`.

    capture: makes a graph of what a function puts on a stream.
    """

    _cache: TrtCache

    def __init__(
        self,
        model: LayeredModel,
        weights: WeightSource,
        engines: Mapping[Piece, PieceEngine],
        cuda: Any,
        device: Any,
        capture: Capture,
    ) -> None:
        self.spec = model.decoder
        self.lanes = model.lanes
        self.longest_step = model.chunks[-1]
        self.grows = len(model.capacities) > 1
        self._model = model
        self._engines = dict(engines)
        self._cuda = cuda
        self._device = device
        self._capture = capture
        self._is_open = True
        self._stream = cuda.Stream()
        self._memory: list[Any] = []
        self._tables = {name: weights.tensor(name) for name in ("embedding", "cosines", "sines")}
        self._layers = [
            {
                name: self._upload(weights.tensor(f"layers.{i}.{name}"))
                for name in model.layer_weights
            }
            for i in range(self.spec.layers)
        ]
        self._tail = {name: self._upload(weights.tensor(name)) for name in ("norm", "head")}
        self._cache = TrtCache(
            self.spec, model.capacities, self.lanes, cuda, self._stream, heads=model.heads
        )
        self._inputs: dict[tuple[int, int], StepInputs] = {}
        self._tails = {
            width: Tail(model, width, self._tail_engine(width), cuda) for width in {1, self.lanes}
        }
        self._graphs: dict[tuple[int, int, bool], Replay] = {}
        self._sparse = SparseRows(self.spec.vocabulary)
        self._logits = np.empty((0, self.spec.vocabulary), np.float32)

    @classmethod
    def open(
        cls,
        model: LayeredModel,
        weights: WeightSource,
        plans: Mapping[Piece, bytes],
        *,
        library: TensorRT,
        device: int = 0,
    ) -> TrtDecoder:
        """Open verified engines and send the weights to the device.

        Raises BackendUnavailableError without driver or device, ModelError if an engine is
        refused or the memory is not there.
        """
        missing = [piece.file for piece in model.pieces if piece not in plans]
        if missing:
            raise ModelError(f"no engine of {', '.join(missing)}; build it for this device")
        cuda = load_cuda()
        context = PrimaryContext(cuda, device)
        with context:
            engines = {piece: TrtPiece.open(plans[piece], library) for piece in model.pieces}
            scratch = None
            try:
                scratch = cuda.mem_alloc(max(1, *(e.scratch_bytes for e in engines.values())))
                for engine in engines.values():
                    engine.use(scratch, cuda)
                decoder = cls(model, weights, engines, cuda, context, CudaGraph.capture)
            except cuda.MemoryError as error:
                raise ModelError(
                    f"the model does not fit into device memory: {error}; stop other users of the "
                    "device, or export with fewer lanes or smaller capacities"
                ) from error
            decoder._memory.append(scratch)
        return decoder

    def _step(
        self, first: int, tokens: IntArray, start: IntArray, rows: IntArray, top: int | None
    ) -> FloatArray:
        few = top is not None and top <= LIKELIEST and rows.size > 0
        if self._cache.reserve(max(start.tolist()) + tokens.shape[1]):
            self._drop_graphs()
        if tokens.shape[1] == 1 and rows.shape[1] == 1:
            return self._decode(first, tokens[:, 0], start, few)
        return self._prefill(first, tokens, start, rows, few)

    def shrink(self, length: int) -> None:
        """Forget all positions from length on."""
        with self._device:
            if self._cache.shrink(length):
                self._drop_graphs()

    def close(self) -> None:
        """Free graphs, engines, weights and cache."""
        if not self._is_open:
            return
        self._is_open = False
        with self._device:
            self._drop_graphs()
            for engine in self._engines.values():
                engine.close()
            for inputs in self._inputs.values():
                inputs.close()
            for tail in self._tails.values():
                tail.close()
            self._cache.close()
            for memory in self._memory:
                memory.free()
        self._engines.clear()
        self._memory.clear()
        self._layers.clear()
        self._tables.clear()

    def _decode(self, first: int, tokens: IntArray, start: IntArray, few: bool) -> FloatArray:
        """Run one token in each of some lanes; with several, the idle ones run along unseen."""
        width = 1 if len(tokens) == 1 else self.lanes
        begin = 0 if width == 1 else first
        inputs, tail = self._inputs_of(width, 1), self._tails[width]
        for row, (token, position) in enumerate(zip(tokens.tolist(), start.tolist(), strict=True)):
            inputs.set(begin + row, [token], position, self._tables)
        key = (width, first if width == 1 else 0, few)
        graph = self._graphs.get(key)
        if graph is None:
            self._enqueue(*key)  # a context's first run does work no graph can hold
            self._stream.synchronize()
            graph = self._graphs[key] = captured(
                self._capture, self._stream.handle, lambda: self._enqueue(*key)
            )
        graph.launch()
        for row, position in enumerate(start.tolist()):
            self._cache.store(
                inputs.heads, width=width, row=begin + row, tokens=1, count=1,
                lane=first + row, start=position,
            )  # fmt: skip
        self._stream.synchronize()
        found = slice(begin, begin + len(tokens))
        if few:
            return self._sparse.filled(tail.top[found], tail.top_ids[found])[:, None]
        logits: FloatArray = tail.logits[found, None]
        return logits

    def _enqueue(self, width: int, first: int, few: bool) -> None:
        inputs, tail = self._inputs_of(width, 1), self._tails[width]
        inputs.send(self._stream)
        hidden = self._run_layers(inputs, width, 1, first, lambda layer: None)
        tail.enqueue(self._tail | {"hidden": hidden}, self._stream, few)

    def _prefill(
        self, first: int, tokens: IntArray, start: IntArray, rows: IntArray, few: bool
    ) -> FloatArray:
        """Run several tokens in each of some lanes, one lane after the other."""
        (lanes, count), wanted = tokens.shape, rows.shape[1]
        chunk = next(size for size in self._model.chunks if size >= count)
        size = lanes * wanted
        if not few and size > len(self._logits):
            self._logits = np.empty((size, self.spec.vocabulary), np.float32)
        picked: list[tuple[AnyArray, AnyArray]] = []
        inputs = self._inputs_of(1, chunk)
        for row in range(lanes):
            position = int(start[row])
            inputs.set(0, tokens[row].tolist(), position, self._tables)
            inputs.send(self._stream)

            def store(layer: int, row: int = row, position: int = position) -> None:
                self._cache.store(
                    inputs.heads, width=1, row=0, tokens=chunk, count=count, lane=first + row,
                    start=position, layers=(layer, layer + 1),
                )  # fmt: skip

            hidden = self._run_layers(inputs, 1, chunk, first + row, store)
            found = self._logits[row * wanted : (row + 1) * wanted]
            picked += self._tail_of_rows(hidden, rows[row].tolist(), few, found)
            self._stream.synchronize()  # the memory of the inputs is the next lane's
        if few:
            tops, ids = (np.concatenate(parts) for parts in zip(*picked, strict=True))
            return self._sparse.filled(tops, ids).reshape(lanes, wanted, -1)
        return self._logits[:size].reshape(lanes, wanted, -1)

    def _run_layers(
        self, inputs: StepInputs, width: int, tokens: int, first: int, behind: Callable[[int], None]
    ) -> int:
        """Put all layers on the stream; return where the last one leaves its rows."""
        engine = self._engines[
            Piece(kind="layer", lanes=width, tokens=tokens, capacity=self._cache.capacity)
        ]
        hidden = inputs.addresses["hidden"]
        for layer, weights in enumerate(self._layers):
            out = inputs.hidden_out[layer % 2]
            addresses = inputs.addresses | weights
            addresses["hidden"], addresses["hidden_out"] = hidden, out
            addresses["heads"] = inputs.heads_of(layer)
            for kind, name in enumerate(("key", "value")):
                addresses[name] = self._cache.address(layer, kind, first)
            engine.enqueue(addresses, self._stream)
            behind(layer)
            hidden = out
        return hidden

    def _tail_of_rows(
        self, hidden: int, rows: list[int], few: bool, out: FloatArray
    ) -> list[tuple[AnyArray, AnyArray]]:
        """Compute the logits of some rows into out, or return the likeliest of each."""
        tail = self._tails[1 if len(rows) == 1 else self.lanes]
        row_bytes = self._model.hidden * self._model.dtype.itemsize
        picked = []
        for begin in range(0, len(rows), tail.width):
            some = rows[begin : begin + tail.width]
            for place, row in enumerate(some):
                self._cuda.memcpy_dtod_async(
                    tail.hidden + place * row_bytes, hidden + row * row_bytes, row_bytes,
                    self._stream,
                )  # fmt: skip
            tail.enqueue(self._tail | {"hidden": tail.hidden}, self._stream, few)
            self._stream.synchronize()
            if few:
                picked.append((tail.top[: len(some)].copy(), tail.top_ids[: len(some)].copy()))
            else:
                out[begin : begin + len(some)] = tail.logits[: len(some)]
        return picked

    def _inputs_of(self, width: int, tokens: int) -> StepInputs:
        known = self._inputs.get((width, tokens))
        if known is not None and known.capacity == self._cache.capacity:
            return known
        if known is not None:
            known.close()
        made = StepInputs(self._model, width, tokens, self._cache.capacity, self._cuda)
        self._inputs[width, tokens] = made
        return made

    def _tail_engine(self, width: int) -> PieceEngine:
        return self._engines[Piece(kind="tail", lanes=width)]

    def _upload(self, tensor: AnyArray) -> int:
        """Copy a tensor to the device, a part at a time, and return its address."""
        flat = np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)
        memory = self._cuda.mem_alloc(max(1, flat.nbytes))
        self._memory.append(memory)
        for begin in range(0, flat.nbytes, CHUNK_BYTES):
            self._cuda.memcpy_htod(int(memory) + begin, flat[begin : begin + CHUNK_BYTES])
        return int(memory)

    def _drop_graphs(self) -> None:
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()
