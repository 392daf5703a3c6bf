"""A deserialized TensorRT engine with its memory: bindings, contexts, profiles.

Written for the calls that TensorRT 8.5 to 11 have in common; where they differ, the object is
asked what it has.
"""

from __future__ import annotations

import json
import mmap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from edge.errors import InferenceError, ModelError
from edge.spec import AnyArray, TensorSpec
from edge.staging import Staged, staging_threads
from edge.tensorrt_library import TensorRT

Plan = bytes | mmap.mmap
Shape = tuple[int, ...]
Shapes = tuple[Shape, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """One tensor of the engine: pinned host memory and device memory for its largest shape."""

    name: str
    dtype: np.dtype[Any]
    host: AnyArray
    device: Any
    cuda: Any
    threads: ThreadPoolExecutor

    def staged(self, shape: Shape) -> Staged:
        """Return the start of both memories as an array of this shape."""
        host = self.host[: prod(shape) * self.dtype.itemsize].view(self.dtype).reshape(shape)
        return Staged(host=host, device=self.device, cuda=self.cuda, threads=self.threads)


@dataclass(slots=True)
class Context:
    """An execution context and the input shapes it knows."""

    handle: Any
    shapes: Shapes = ()


class Engine:
    """An ICudaEngine and all memory that its largest run needs; one thread uses it."""

    def __init__(self, library: TensorRT, runtime: Any, engine: Any, cuda: Any) -> None:
        self.library = library
        self._runtime = runtime  # must outlive the engine
        self._engine = engine
        self._cuda = cuda
        self._scratch: Any = None
        self._threads = staging_threads()
        self._ranges: list[list[tuple[Shape, Shape, Shape]]] = []
        self.inputs: tuple[Binding, ...] = ()
        self.outputs: tuple[Binding, ...] = ()
        self.contexts: list[Context] = []
        self.memory_bytes = 0

    @classmethod
    def open(
        cls,
        plan: Plan,
        *,
        library: TensorRT,
        cuda: Any,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
    ) -> Engine:
        """Deserialize and allocate; the device's context must be current.

        Raises ModelError if TensorRT refuses the bytes, the specs are not the engine's, or the
        memory is not there.
        """
        free_before = cuda.mem_get_info()[0]
        library.messages.clear()
        runtime = library.module.Runtime(library.logger)
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise ModelError(
                f"TensorRT {library.version} refuses the engine: {library.last_error()}; build it "
                "for this device"
            )
        opened = cls(library, runtime, engine, cuda)
        try:
            opened._allocate(inputs, outputs)
            opened.memory_bytes = max(0, free_before - cuda.mem_get_info()[0])
        except cuda.MemoryError as error:
            opened.close()
            raise ModelError(
                f"the engine does not fit into device memory: {error}; stop other users of the "
                "device, or export with a smaller --shape maximum"
            ) from error
        except ModelError:
            opened.close()
            raise
        return opened

    def close(self) -> None:
        """Free contexts, memory and engine, in this order."""
        self._threads.shutdown()
        self.contexts.clear()
        for binding in (*self.inputs, *self.outputs):
            binding.device.free()
        self.inputs = self.outputs = ()
        if self._scratch is not None:
            self._scratch.free()
        self._scratch = self._engine = self._runtime = None

    def profile_for(self, shapes: Shapes) -> int | None:
        """Return the profile whose largest shapes are the smallest that hold these."""
        fitting = [
            (sum(prod(high) for _, _, high in ranges), index)
            for index, ranges in enumerate(self._ranges)
            if all(
                all(a <= s <= b for a, s, b in zip(low, shape, high, strict=True))
                for shape, (low, _, high) in zip(shapes, ranges, strict=True)
            )
        ]
        return min(fitting)[1] if fitting else None

    def layers(self) -> dict[str, int]:
        """Return the number of layers by the precision of their inputs, and of reformats.

        Empty where the engine was built without details, or TensorRT does not tell.
        """
        trt = self.library.module
        inspector = self._engine.create_engine_inspector()
        text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
        try:
            layers = [layer for layer in json.loads(text)["Layers"] if isinstance(layer, dict)]
        except (ValueError, KeyError, TypeError):
            return {}
        counts: dict[str, int] = {}
        for layer in layers:
            kind = _kind(layer)
            counts[kind] = counts.get(kind, 0) + 1
        return counts

    def new_context(self, profile: int) -> Context:
        """Return an execution context on a profile, with its addresses set.

        Raises InferenceError where TensorRT does not let two contexts share a profile (8.5, and
        engines built without profile sharing).
        """
        trt, engine = self.library.module, self._engine
        if hasattr(trt, "ExecutionContextAllocationStrategy"):
            strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
            context = engine.create_execution_context(strategy)
        else:
            context = engine.create_execution_context_without_device_memory()
        if context is None:
            raise InferenceError(f"no execution context: {self.library.last_error()}")
        size = self._scratch_bytes()
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(int(self._scratch), size)
        else:
            context.device_memory = int(self._scratch)
        if profile != 0 or engine.num_optimization_profiles > 1:
            stream = self._cuda.Stream()
            if not context.set_optimization_profile_async(profile, stream.handle):
                raise InferenceError(f"profile {profile} refused: {self.library.last_error()}")
            stream.synchronize()
        for binding in (*self.inputs, *self.outputs):
            context.set_tensor_address(binding.name, int(binding.device))
        return Context(handle=context)

    def set_shapes(self, context: Context, shapes: Shapes) -> None:
        """Tell a context the input shapes of its next run; free if it knows them."""
        if context.shapes == shapes:
            return
        for binding, shape in zip(self.inputs, shapes, strict=True):
            if not context.handle.set_input_shape(binding.name, shape):
                raise InferenceError(
                    f"input {binding.name!r}: TensorRT refuses the shape {list(shape)}: "
                    f"{self.library.last_error()}"
                )
        context.shapes = shapes

    def output_shapes(self, profile: int, shapes: Shapes) -> Shapes:
        """Return the shapes that the outputs have for these input shapes."""
        context = self.contexts[profile]
        self.set_shapes(context, shapes)
        return tuple(tuple(context.handle.get_tensor_shape(b.name)) for b in self.outputs)

    def _allocate(self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        _check_interface(self.library.module, self._engine, inputs, outputs)
        profiles = range(self._engine.num_optimization_profiles)
        self._ranges = [
            [self._range(spec.name, profile) for spec in inputs] for profile in profiles
        ]
        self._scratch = self._cuda.mem_alloc(max(1, self._scratch_bytes()))
        largest = [
            max((ranges[i][2] for ranges in self._ranges), key=prod) for i in range(len(inputs))
        ]
        self.inputs = tuple(
            self._binding(spec, shape) for spec, shape in zip(inputs, largest, strict=True)
        )
        # Addresses of outputs are set once their sizes are known; shapes do not need them.
        self.contexts = [self.new_context(profile) for profile in profiles]
        sizes = [
            self._output_shapes(context, outputs, tuple(high for _, _, high in ranges))
            for context, ranges in zip(self.contexts, self._ranges, strict=True)
        ]
        self.outputs = tuple(
            self._binding(spec, max((shapes[i] for shapes in sizes), key=prod))
            for i, spec in enumerate(outputs)
        )
        for context in self.contexts:
            for binding in self.outputs:
                context.handle.set_tensor_address(binding.name, int(binding.device))

    def _output_shapes(
        self, context: Context, outputs: tuple[TensorSpec, ...], shapes: Shapes
    ) -> Shapes:
        self.set_shapes(context, shapes)
        found = tuple(tuple(context.handle.get_tensor_shape(spec.name)) for spec in outputs)
        for spec, shape in zip(outputs, found, strict=True):
            if any(dim < 0 for dim in shape):
                raise ModelError(
                    f"output {spec.name!r} has a shape that depends on values: {list(shape)}; "
                    "serve this model through ONNX Runtime"
                )
        return found

    def _range(self, name: str, profile: int) -> tuple[Shape, Shape, Shape]:
        low, opt, high = (
            tuple(shape) for shape in self._engine.get_tensor_profile_shape(name, profile)
        )
        return low, opt, high

    def _binding(self, spec: TensorSpec, shape: Shape) -> Binding:
        dtype = np.dtype(self.library.module.nptype(self._engine.get_tensor_dtype(spec.name)))
        size = max(1, prod(shape) * dtype.itemsize)
        return Binding(
            name=spec.name,
            dtype=dtype,
            host=self._cuda.pagelocked_empty(size, np.uint8),
            device=self._cuda.mem_alloc(size),
            cuda=self._cuda,
            threads=self._threads,
        )

    def _scratch_bytes(self) -> int:
        engine = self._engine
        if hasattr(engine, "device_memory_size_v2"):
            return int(engine.device_memory_size_v2)
        return int(engine.device_memory_size)


def _kind(layer: dict[str, Any]) -> str:
    if layer.get("LayerType") == "Reformat":
        return "reformat"
    formats = " ".join(str(i.get("Format/Datatype", "")) for i in layer.get("Inputs", ()))
    for word, precision in (("Int8", "int8"), ("Half", "fp16"), ("FP16", "fp16")):
        if word.lower() in formats.lower():
            return precision
    return "fp32"


def _check_interface(
    trt: Any, engine: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> None:
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    for kind, mode, specs in (
        ("inputs", trt.TensorIOMode.INPUT, inputs),
        ("outputs", trt.TensorIOMode.OUTPUT, outputs),
    ):
        found = {name for name in names if engine.get_tensor_mode(name) == mode}
        expected = {spec.name for spec in specs}
        if found != expected:
            raise ModelError(
                f"the engine has the {kind} {sorted(found)}, the manifest says "
                f"{sorted(expected)}; pack it again"
            )
