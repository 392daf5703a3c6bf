"""One engine that is a whole chat graph: execution contexts for the shapes that are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from edge.chat.trt_piece import Addresses
from edge.chat.whole import Bounds, Shape
from edge.errors import InferenceError, ModelError
from edge.tensorrt_library import TensorRT
from edge.trt_engine import new_context, scratch_bytes
from edge.trt_tensors import dtype_of

Shapes = Mapping[str, Shape]


class GraphRun(Protocol):
    """An engine that knows the shapes of its next runs."""

    def enqueue(self, addresses: Addresses, stream: Any) -> None:
        """Put a run on a stream, with every tensor at its device address."""


class GraphEngine(Protocol):
    """An opened graph. keeps_runs: whether a run stays what it was when another is made."""

    keeps_runs: bool

    def inputs(self) -> tuple[dict[str, Bounds], ...]:
        """Return the smallest and largest shape of every input, by profile."""

    def outputs(self) -> dict[str, Shape]:
        """Return the shape of every output; what varies is negative."""

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return the numpy type of an input or output."""

    def run_for(self, shapes: Shapes, profile: int, *, kept: bool) -> GraphRun:
        """Return what runs these shapes; unless it is kept, only until the next is made."""

    def close(self) -> None:
        """Free it."""


class TrtGraph:
    """A deserialized engine, and memory for the activations of its largest run."""

    def __init__(self, library: TensorRT, runtime: Any, engine: Any, cuda: Any) -> None:
        self.keeps_runs = library.shares_profiles
        self._library = library
        self._runtime = runtime  # must outlive the engine
        self._engine = engine
        self._cuda = cuda
        self._scratch: Any = cuda.mem_alloc(max(1, scratch_bytes(engine)))
        self._passing: dict[int, _TrtRun] = {}

    @classmethod
    def open(cls, plan: Any, library: TensorRT, cuda: Any) -> TrtGraph:
        """Deserialize verified bytes; raises ModelError if TensorRT refuses them."""
        library.messages.clear()
        runtime = library.module.Runtime(library.logger)
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise ModelError(
                f"TensorRT {library.version} refuses the engine: {library.first_error()}; build it "
                "for this device"
            )
        return cls(library, runtime, engine, cuda)

    def inputs(self) -> tuple[dict[str, Bounds], ...]:
        """Return the smallest and largest shape of every input, by profile."""
        names = self._names(self._library.module.TensorIOMode.INPUT)
        return tuple(
            {name: self._bounds(name, profile) for name in names}
            for profile in range(self._engine.num_optimization_profiles)
        )

    def outputs(self) -> dict[str, Shape]:
        """Return the shape of every output; what varies is negative."""
        names = self._names(self._library.module.TensorIOMode.OUTPUT)
        return {name: tuple(self._engine.get_tensor_shape(name)) for name in names}

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return the numpy type of an input or output."""
        return dtype_of(self._engine, name)

    def run_for(self, shapes: Shapes, profile: int, *, kept: bool) -> GraphRun:
        """Return a context with these shapes: one of its own if it is kept."""
        run = None if kept else self._passing.get(profile)
        if run is None:
            context = new_context(
                self._library, self._engine, self._scratch, self._cuda, profile, one_shape=kept
            )
            run = _TrtRun(self._library, context)
            if not kept:
                self._passing[profile] = run
        run.set_shapes(shapes)
        return run

    def close(self) -> None:
        """Free contexts, memory and engine; runs that were kept must be gone."""
        self._passing.clear()
        if self._scratch is not None:
            self._scratch.free()
        self._scratch = self._engine = self._runtime = None

    def _names(self, mode: Any) -> list[str]:
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        return [name for name in names if self._engine.get_tensor_mode(name) == mode]

    def _bounds(self, name: str, profile: int) -> Bounds:
        fixed = tuple(self._engine.get_tensor_shape(name))
        if all(size >= 0 for size in fixed):
            return fixed, fixed
        low, _, high = self._engine.get_tensor_profile_shape(name, profile)
        return tuple(low), tuple(high)


class _TrtRun:
    """An execution context."""

    def __init__(self, library: TensorRT, context: Any) -> None:
        self._library = library
        self._context = context
        self._shapes: dict[str, Shape] = {}

    def set_shapes(self, shapes: Shapes) -> None:
        for name, shape in shapes.items():
            if self._shapes.get(name) == shape:
                continue
            if not self._context.set_input_shape(name, shape):
                raise InferenceError(
                    f"input {name!r}: TensorRT refuses the shape {list(shape)}: "
                    f"{self._library.last_error()}"
                )
            self._shapes[name] = shape

    def enqueue(self, addresses: Addresses, stream: Any) -> None:
        for name, address in addresses.items():
            self._context.set_tensor_address(name, address)
        if not self._context.execute_async_v3(stream.handle):
            raise InferenceError(f"TensorRT failed to run: {self._library.last_error()}")
