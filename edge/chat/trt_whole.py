"""TensorRT behind the Decoder seam, for a chat model that is one engine.

A step of one token is a CUDA graph: tokens, starts and rows go in as one copy, and the logits of
the lanes that ran come back. A step of several tokens runs as it comes. Everything lives on the
device's primary context, in the thread that called `open`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from edge.chat.decoder import FloatArray, IntArray
from edge.chat.spec import DecoderSpec, cache_inputs, cache_outputs
from edge.chat.trt_base import DeviceDecoder
from edge.chat.trt_buffers import ALIGNMENT_BYTES
from edge.chat.trt_graph import GraphEngine, GraphRun, TrtGraph
from edge.chat.trt_lanes import Lanes, View, lanes_of
from edge.chat.trt_replay import Capture, Plain, Replay, captured
from edge.chat.whole import INPUT_IDS, LOGITS, ROWS, START, Bounds, Run, Shape
from edge.cuda_graph import CudaGraph
from edge.cuda_library import PrimaryContext, load_cuda
from edge.errors import InferenceError, ModelError
from edge.tensorrt_library import TensorRT

MAX_GRAPHS = 64  # each keeps an execution context


class TrtWholeDecoder(DeviceDecoder):
    """A chat model whose graph is one engine; make it with `open`.

    lanes: at most; the engine may have been built for fewer. spec: of the variant, its context
    at most what the engine was built for. capture: makes a graph of what goes on a stream.
    """

    grows = False
    _cache: Lanes

    def __init__(
        self,
        spec: DecoderSpec,
        engine: GraphEngine,
        cuda: Any,
        device: Any,
        capture: Capture,
        *,
        lanes: int,
    ) -> None:
        self._profiles = engine.inputs()
        built = _built_spec(spec, engine, self._profiles)
        most_lanes, self.longest_step = _largest(self._profiles, INPUT_IDS)
        self._most_rows = _largest(self._profiles, ROWS)[1]
        self.lanes = min(lanes, most_lanes)
        self.spec = replace(spec, context=min(spec.context, built.context))
        # What is read at places is as long as asked for; what is updated in place, as built.
        self._graph_spec = self.spec if spec.form == "prefix" else built
        self._engine = engine
        self._cuda = cuda
        self._device = device
        self._capture = capture
        self._is_open = True
        self._stream = cuda.Stream()
        sizes = {
            START: self.lanes,
            ROWS: self.lanes * self._most_rows,
            INPUT_IDS: self.lanes * self.longest_step,
        }
        self._inputs = _StepInputs(sizes, engine, cuda)
        self._cache = lanes_of(self._graph_spec, self.lanes, cuda, self._stream)
        self._graphs: dict[tuple[View, int, int, int], Replay] = {}
        self._bound: list[GraphRun] = []  # a graph crashes without its execution context
        self._logits: Any = None
        self._host_logits = np.empty((0, spec.vocabulary), np.float32)
        self._reserve_logits(self.lanes)

    @classmethod
    def open(
        cls, spec: DecoderSpec, plan: Any, *, library: TensorRT, lanes: int, device: int = 0
    ) -> TrtWholeDecoder:
        """Open a verified engine.

        Raises BackendUnavailableError without driver or device, ModelError if the engine is
        refused, is not the graph of spec, or the memory is not there.
        """
        cuda = load_cuda()
        context = PrimaryContext(cuda, device)
        with context:
            try:
                engine = TrtGraph.open(plan, library, cuda)
                return cls(spec, engine, cuda, context, CudaGraph.capture, lanes=lanes)
            except cuda.MemoryError as error:
                raise ModelError(
                    f"the model does not fit into device memory: {error}; stop other users of the "
                    "device, or build for fewer lanes or a smaller context"
                ) from error

    def shrink(self, length: int) -> None:
        """Do nothing: a step is no faster then."""

    def close(self) -> None:
        """Free graphs, engine and cache."""
        if not self._is_open:
            return
        self._is_open = False
        with self._device:
            self._drop_graphs()
            self._engine.close()
            self._cache.close()
            self._inputs.close()
            self._logits.free()

    def _step(
        self, first: int, tokens: IntArray, start: IntArray, rows: IntArray, top: int | None
    ) -> FloatArray:
        """Run the step; again for more rows than the engine gives: it computes the same then.

        Logits are given whatever top is.
        """
        (lanes, count), wanted = tokens.shape, rows.shape[1]
        view, has_moved = self._cache.view(first, start, count)
        if has_moved:
            self._drop_graphs()
        self._cache.load(view, int(start.max()))
        if wanted == 0:
            self._run(view, tokens, start, np.zeros((lanes, 1), np.int64), copied=0)
        parts = []
        for begin in range(0, wanted, self._most_rows):
            some = rows[:, begin : begin + self._most_rows]
            size = some.shape[1]
            self._run(view, tokens, start, some, copied=lanes)
            if size < wanted:
                self._stream.synchronize()
                parts.append(self._host_logits[: lanes * size].reshape(lanes, size, -1).copy())
        self._cache.store(view, start, count)
        self._stream.synchronize()
        if parts:
            return np.concatenate(parts, axis=1)
        shape = (lanes, wanted, self.spec.vocabulary)
        found: FloatArray = self._host_logits[: lanes * wanted].reshape(shape)
        return found

    def _run(
        self, view: View, tokens: IntArray, start: IntArray, rows: IntArray, *, copied: int
    ) -> None:
        """Put a run on the stream. copied: lanes whose logits come back."""
        (lanes, count), wanted = tokens.shape, rows.shape[1]
        if view.width * wanted > len(self._host_logits):
            self._reserve_logits(view.width * wanted)
        inside = slice(view.row, view.row + lanes)
        for name, values in ((INPUT_IDS, tokens), (START, start), (ROWS, rows)):
            array = self._inputs.array(name, (view.width, *values.shape[1:]))
            if lanes < view.width:
                array[:] = 0
            array[inside] = values
        key = (view, count, wanted, copied)
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._made(*key)
        graph.launch()

    def _made(self, view: View, count: int, wanted: int, copied: int) -> Replay:
        """Return what puts a run on the stream, and keep it if it is a step of one token."""
        run = Run(lanes=view.width, tokens=count, wanted=wanted, prefix=view.prefix)
        shapes = run.shapes(self._graph_spec)
        is_kept = count == 1 and wanted == 1 and self._engine.keeps_runs
        if len(self._graphs) >= MAX_GRAPHS:
            self._drop_graphs()
        bound = self._engine.run_for(shapes, self._profile_for(shapes), kept=is_kept)
        addresses = {
            **self._inputs.addresses,
            **self._cache.addresses(view, count),
            LOGITS: int(self._logits),
        }
        enqueue = functools.partial(
            self._enqueue, bound.enqueue, addresses, view, count, wanted, copied
        )
        if not is_kept:
            return Plain(enqueue)
        enqueue()  # a context's first run does work no graph can hold
        self._stream.synchronize()
        self._bound.append(bound)
        key = (view, count, wanted, copied)
        self._graphs[key] = captured(self._capture, self._stream.handle, enqueue)
        return self._graphs[key]

    def _enqueue(
        self, enqueue: Any, addresses: Mapping[str, int], view: View, count: int, wanted: int,
        copied: int,
    ) -> None:  # fmt: skip
        self._inputs.send(view.width * count, self._stream)
        enqueue(addresses, self._stream)
        if copied:
            row_bytes = wanted * self.spec.vocabulary * self._host_logits.itemsize
            host = self._host_logits[: copied * wanted]
            self._cuda.memcpy_dtoh_async(
                host, int(self._logits) + view.row * row_bytes, self._stream
            )

    def _profile_for(self, shapes: Mapping[str, Shape]) -> int:
        """Return the profile whose largest shapes are the smallest that hold these."""
        fitting = [
            (prod(bounds[INPUT_IDS][1]), index)
            for index, bounds in enumerate(self._profiles)
            if all(_holds(bounds[name], shape) for name, shape in shapes.items())
        ]
        if not fitting:
            raise InferenceError(f"the engine was not built for {dict(shapes)}; build it again")
        return min(fitting)[1]

    def _reserve_logits(self, rows: int) -> None:
        """Make room for so many rows of logits on both sides."""
        self._drop_graphs()
        self._stream.synchronize()
        if self._logits is not None:
            self._logits.free()
        self._host_logits = self._cuda.pagelocked_empty((rows, self.spec.vocabulary), np.float32)
        self._logits = self._cuda.mem_alloc(self._host_logits.nbytes)

    def _drop_graphs(self) -> None:
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()
        self._bound.clear()


class _StepInputs:
    """What a step brings, in one block of memory on either side; the tokens come last.

    sizes: of each input at most, in the order in which they lie.
    """

    def __init__(self, sizes: Mapping[str, int], engine: GraphEngine, cuda: Any) -> None:
        self._cuda = cuda
        self._dtypes = {name: engine.dtype(name) for name in sizes}
        self._offsets, size = {}, 0
        for name, count in sizes.items():
            self._offsets[name] = size
            size += -(-count * self._dtypes[name].itemsize // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        self._host = cuda.pagelocked_empty(size, np.uint8)
        self._host[:] = 0
        self._device = cuda.mem_alloc(size)
        self.addresses = {name: int(self._device) + at for name, at in self._offsets.items()}

    def array(self, name: str, shape: Shape) -> Any:
        """Return where the host writes an input of this shape."""
        begin, dtype = self._offsets[name], self._dtypes[name]
        return self._host[begin : begin + prod(shape) * dtype.itemsize].view(dtype).reshape(shape)

    def send(self, tokens: int, stream: Any) -> None:
        """Put the copy of everything up to so many tokens on a stream."""
        size = self._offsets[INPUT_IDS] + tokens * self._dtypes[INPUT_IDS].itemsize
        self._cuda.memcpy_htod_async(int(self._device), self._host[:size], stream)

    def close(self) -> None:
        """Free the device's memory."""
        self._device.free()


def _built_spec(
    spec: DecoderSpec, engine: GraphEngine, profiles: tuple[dict[str, Bounds], ...]
) -> DecoderSpec:
    """Return the spec with the context that an engine holds; raises ModelError if it is another."""
    outputs, caches = engine.outputs(), cache_inputs(spec)
    found = {*profiles[0], *outputs}
    expected = {INPUT_IDS, START, ROWS, LOGITS, *caches, *cache_outputs(spec)}
    if found != expected:
        wrong = ", ".join(sorted(found ^ expected))
        raise ModelError(
            f"the engine is no chat graph of form {spec.form!r} ({wrong}); build it again"
        )
    shape = _largest(profiles, caches[0])
    context = shape[0] if spec.form == "prefix" else shape[2]
    built = replace(spec, context=context)
    lanes = _largest(profiles, START)[0]
    prefix = context if spec.form == "prefix" else None
    run = Run(lanes=lanes, tokens=1, wanted=1, prefix=prefix)
    for name, wanted in run.shapes(built).items():
        if name in caches and _largest(profiles, name) != wanted:
            raise ModelError(
                f"the engine's {name} is {list(_largest(profiles, name))}, the bundle says "
                f"{list(wanted)}; build it again"
            )
    types = {engine.dtype(name) for name in (*caches, *cache_outputs(spec))}
    if types != {spec.cache_dtype} or outputs[LOGITS][-1] != spec.vocabulary:
        raise ModelError(
            f"the engine has a cache of {', '.join(map(str, types))} and "
            f"{outputs[LOGITS][-1]} logits, the bundle says {spec.cache_dtype} and "
            f"{spec.vocabulary}; build it again"
        )
    if engine.dtype(LOGITS) != np.float32:
        raise ModelError(f"the engine's logits are {engine.dtype(LOGITS)}; build it again")
    return built


def _largest(profiles: tuple[dict[str, Bounds], ...], name: str) -> Shape:
    """Return the largest shape of an input over all profiles."""
    sizes = zip(*(bounds[name][1] for bounds in profiles), strict=True)
    return tuple(max(of_profiles) for of_profiles in sizes)


def _holds(bounds: Bounds, shape: Shape) -> bool:
    low, high = bounds
    return all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))
