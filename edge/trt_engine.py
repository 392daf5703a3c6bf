"""A deserialized TensorRT engine with its memory: bindings, contexts, profiles.

Written for the calls that TensorRT 8.5 to 11 have in common; where they differ, the object is
asked what it has.
"""

from __future__ import annotations

import json
import mmap
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from edge.errors import InferenceError, ModelError
from edge.spec import StatePair, TensorSpec
from edge.staging import LARGE_BYTES, Staged
from edge.tensorrt_library import TensorRT
from edge.trt_outputs import GrowingOutput
from edge.trt_tensors import Binding, Shape, State, check_interface, dtype_of

Plan = bytes | mmap.mmap
Shapes = tuple[Shape, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bank:
    """The tensors of one run, while another run uses those of another bank."""

    inputs: tuple[Binding, ...]
    outputs: tuple[Binding | GrowingOutput, ...]


@dataclass(slots=True)
class Context:
    """An execution context, the bank it works on, and the input shapes it knows."""

    handle: Any
    bank: int | None = None
    shapes: Shapes = ()


class Engine:
    """An ICudaEngine and all memory that its largest run needs; one thread uses it."""

    def __init__(self, library: TensorRT, runtime: Any, engine: Any, cuda: Any) -> None:
        self.library = library
        self._runtime = runtime  # must outlive the engine
        self._engine = engine
        self._cuda = cuda
        self._scratch: Any = None
        self._ranges: list[list[tuple[Shape, Shape, Shape]]] = []
        self.banks: tuple[Bank, ...] = ()
        self.states: tuple[State, ...] = ()
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
        states: tuple[StatePair, ...] = (),
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
                f"TensorRT {library.version} refuses the engine: {library.first_error()}; build it "
                "for this device"
            )
        opened = cls(library, runtime, engine, cuda)
        try:
            opened._allocate(inputs, outputs, states)
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
        self.contexts.clear()
        for bank in self.banks:
            for binding in (*bank.inputs, *bank.outputs):
                binding.close()
        for memory in {id(m): m for state in self.states for m in state.memory}.values():
            memory.free()
        self.banks = self.states = ()
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

    def layer_details(self) -> list[dict[str, Any]]:
        """Return TensorRT's own description of every layer, as its JSON has it.

        Empty where the engine was built without details, or TensorRT does not tell.
        """
        trt = self.library.module
        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = self.contexts[-1].handle  # formats follow from its shapes
        text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
        try:
            layers = json.loads(text, strict=False)["Layers"]
        except (ValueError, KeyError, TypeError):
            return []
        return [layer for layer in layers if isinstance(layer, dict)]

    def layers(self) -> dict[str, int]:
        """Return the number of layers by the precision of their inputs, and of reformats."""
        counts: dict[str, int] = {}
        for layer in self.layer_details():
            kind = precision_of_layer(layer)
            counts[kind] = counts.get(kind, 0) + 1
        return counts

    def new_context(self, profile: int) -> Context:
        """Return an execution context on a profile, with its addresses set.

        Raises InferenceError if the profile has a context and the engine was built without profile
        sharing.
        """
        handle = new_context(self.library, self._engine, self._scratch, self._cuda, profile)
        return Context(handle=handle)

    def use_bank(self, context: Context, bank: int) -> None:
        """Point a context at the tensors of a bank; free if it is there."""
        if context.bank == bank:
            return
        for binding in (*self.banks[bank].inputs, *self.banks[bank].outputs):
            if isinstance(binding, GrowingOutput):
                context.handle.set_output_allocator(binding.name, binding.allocator)
            else:
                context.handle.set_tensor_address(binding.name, int(binding.device))
        context.bank = bank

    def graph_context(self, profile: int) -> Context | None:
        """Return a context that keeps its shapes, as one under a CUDA graph must; None without.

        It is one of its own, or, where profiles cannot be shared (TensorRT 8.5), that of a
        profile which takes one shape alone.
        """
        if self.library.shares_profiles:
            return self.new_context(profile)
        fixed = all(low == high for low, _, high in self._ranges[profile])
        return self.contexts[profile] if fixed else None

    def set_shapes(self, context: Context, shapes: Shapes) -> None:
        """Tell a context the input shapes of its next run; free if it knows them."""
        if context.shapes == shapes:
            return
        for binding, shape in zip(self.banks[0].inputs, shapes, strict=True):
            if not context.handle.set_input_shape(binding.name, shape):
                raise InferenceError(
                    f"input {binding.name!r}: TensorRT refuses the shape {list(shape)}: "
                    f"{self.library.last_error()}"
                )
        # With an output that only a run can size, the shapes count from this call on: without it
        # TensorRT 8.6 computes with those of the run before.
        if hasattr(context.handle, "infer_shapes") and context.handle.infer_shapes():
            raise InferenceError(
                f"TensorRT cannot tell the shapes that follow from {[list(s) for s in shapes]}: "
                f"{self.library.last_error()}"
            )
        context.shapes = shapes

    @property
    def is_sized(self) -> bool:
        """Whether the shapes of all outputs follow from those of the inputs."""
        return not any(isinstance(output, GrowingOutput) for output in self.banks[0].outputs)

    def answers(self, bank: int, profile: int, shapes: Shapes) -> list[Staged | GrowingOutput]:
        """Return where the outputs arrive for these input shapes."""
        context = self.contexts[profile]
        self.set_shapes(context, shapes)
        return [
            b
            if isinstance(b, GrowingOutput)
            else b.staged(tuple(context.handle.get_tensor_shape(b.name)))
            for b in self.banks[bank].outputs
        ]

    def set_states(self, context: Context, turn: int) -> None:
        """Point a context at the states of this turn."""
        for state in self.states:
            context.handle.set_tensor_address(state.pair.input.name, int(state.memory[turn]))
            context.handle.set_tensor_address(state.pair.output, int(state.memory[1 - turn]))

    def reset_states(self, stream: Any) -> None:
        """Put zeros on the stream, for every state."""
        for state in self.states:
            for memory in state.memory:
                self._cuda.memset_d8_async(int(memory), 0, state.size, stream)

    def _allocate(
        self,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        states: tuple[StatePair, ...],
    ) -> None:
        check_interface(self.library.module, self._engine, inputs, outputs, states)
        self.states = tuple(self._state(pair) for pair in states)
        profiles = range(self._engine.num_optimization_profiles)
        self._ranges = [
            [self._range(spec.name, profile) for spec in inputs] for profile in profiles
        ]
        self._scratch = self._cuda.mem_alloc(max(1, scratch_bytes(self._engine)))
        largest = [
            max((ranges[i][2] for ranges in self._ranges), key=prod) for i in range(len(inputs))
        ]
        bindings = tuple(map(self._binding, inputs, largest))
        self.banks = (Bank(inputs=bindings, outputs=()),)  # shapes of outputs follow from these
        self.contexts = [self.new_context(profile) for profile in profiles]
        sizes = [
            self._output_shapes(context, outputs, tuple(high for _, _, high in ranges))
            for context, ranges in zip(self.contexts, self._ranges, strict=True)
        ]
        by_output = [[shapes[i] for shapes in sizes] for i in range(len(outputs))]
        self.banks = (Bank(inputs=bindings, outputs=tuple(map(self._output, outputs, by_output))),)
        # A run that follows from the one before cannot begin earlier. TensorRT 8.5 has one context
        # for each profile, which is not enough for two banks with graphs.
        if self.is_sized and not states and self.library.shares_profiles:
            second = Bank(
                inputs=tuple(map(self._binding, inputs, largest)),
                outputs=tuple(map(self._output, outputs, by_output)),
            )
            self.banks = (*self.banks, second)

    def _output(self, spec: TensorSpec, shapes: list[Shape]) -> Binding | GrowingOutput:
        """Return the memory of an output; a negative dimension is one that a run decides."""
        if any(dim < 0 for shape in shapes for dim in shape):
            if self.library.backend == "trt" and self.library.major_minor < (8, 6):
                raise ModelError(
                    f"the size of output {spec.name!r} depends on values, and TensorRT "
                    f"{self.library.version} writes such outputs past the memory it asked for; "
                    "use TensorRT 8.6 or later, or end the graph before that operator"
                )
            return GrowingOutput(spec.name, self._dtype(spec.name), self.library.module, self._cuda)
        return self._binding(spec, max(shapes, key=prod))

    def _state(self, pair: StatePair) -> State:
        name, shape = pair.input.name, tuple(self._engine.get_tensor_shape(pair.input.name))
        other = tuple(self._engine.get_tensor_shape(pair.output))
        if any(dim < 0 for dim in shape) or shape != other:
            raise ModelError(
                f"state {name!r} has the shape {list(shape)}, {pair.output!r} has {list(other)}; "
                "both must be the same and fixed: export the model so"
            )
        size = max(1, prod(shape) * self._dtype(name).itemsize)
        first = self._cuda.mem_alloc(size)
        aliased = getattr(self._engine, "get_aliased_input_tensor", None)
        if aliased is not None and aliased(pair.output) == name:
            return State(pair=pair, memory=(first, first), size=size)
        return State(pair=pair, memory=(first, self._cuda.mem_alloc(size)), size=size)

    def _output_shapes(
        self, context: Context, outputs: tuple[TensorSpec, ...], shapes: Shapes
    ) -> Shapes:
        self.set_shapes(context, shapes)
        return tuple(tuple(context.handle.get_tensor_shape(spec.name)) for spec in outputs)

    def _range(self, name: str, profile: int) -> tuple[Shape, Shape, Shape]:
        low, opt, high = (
            tuple(shape) for shape in self._engine.get_tensor_profile_shape(name, profile)
        )
        return low, opt, high

    def _binding(self, spec: TensorSpec, shape: Shape) -> Binding:
        dtype = self._dtype(spec.name)
        size = max(1, prod(shape) * dtype.itemsize)
        return Binding(
            name=spec.name,
            dtype=dtype,
            host=self._cuda.pagelocked_empty(min(size, LARGE_BYTES), np.uint8),
            device=self._cuda.mem_alloc(size),
            cuda=self._cuda,
        )

    def _dtype(self, name: str) -> np.dtype[Any]:
        return dtype_of(self._engine, name)


def new_context(
    library: TensorRT,
    engine: Any,
    scratch: Any,
    cuda: Any,
    profile: int = 0,
    *,
    one_shape: bool = False,
) -> Any:
    """Return an execution context on a profile that uses the memory `scratch` for activations.

    one_shape: TensorRT-RTX then makes the kernels for a shape before it first runs them, not
    while it runs others: a CUDA graph would keep those.
    """
    trt = library.module
    if one_shape and hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
        context = engine.create_execution_context(_one_shape_config(trt, engine))
    elif hasattr(trt, "ExecutionContextAllocationStrategy"):
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = engine.create_execution_context(strategy)
    else:
        context = engine.create_execution_context_without_device_memory()
    if context is None:
        raise InferenceError(f"no execution context: {library.last_error()}")
    if hasattr(context, "set_device_memory"):
        context.set_device_memory(int(scratch), scratch_bytes(engine))
    else:
        context.device_memory = int(scratch)
    # Also where there is one profile alone: a context that got none crashes when it runs.
    stream = cuda.Stream()
    if not context.set_optimization_profile_async(profile, stream.handle):
        raise InferenceError(f"profile {profile} refused: {library.last_error()}")
    stream.synchronize()
    return context


def _one_shape_config(trt: Any, engine: Any) -> Any:
    runtime_config = engine.create_runtime_config()
    runtime_config.set_execution_context_allocation_strategy(
        trt.ExecutionContextAllocationStrategy.USER_MANAGED
    )
    kernels = trt.DynamicShapesKernelSpecializationStrategy
    runtime_config.dynamic_shapes_kernel_specialization_strategy = kernels.EAGER
    return runtime_config


def scratch_bytes(engine: Any) -> int:
    """Return how much memory for activations a run needs."""
    if hasattr(engine, "device_memory_size_v2"):
        return int(engine.device_memory_size_v2)
    return int(engine.device_memory_size)


def precision_of_layer(layer: dict[str, Any]) -> str:
    """Return the precision of a layer's inputs, or "reformat", from its description."""
    if layer.get("LayerType") == "Reformat":
        return "reformat"
    formats = " ".join(str(i.get("Format/Datatype", "")) for i in layer.get("Inputs", ()))
    for word, precision in (("Int8", "int8"), ("Half", "fp16"), ("FP16", "fp16")):
        if word.lower() in formats.lower():
            return precision
    return "fp32"
