"""The tensors of a TensorRT engine: their types, their memory, and whether they are the model's."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from edge.errors import ModelError
from edge.spec import AnyArray, StatePair, TensorSpec
from edge.staging import LARGE_BYTES, Staged

Shape = tuple[int, ...]

# By name: trt.nptype of TensorRT 8.5 fails with every numpy since 1.24.
_NUMPY_FROM_TENSORRT = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT8": np.int8,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "BOOL": np.bool_,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """One tensor of the engine: device memory for its largest shape, pinned memory for small ones.

    host: bytes, at most LARGE_BYTES of them.
    """

    name: str
    dtype: np.dtype[Any]
    host: AnyArray
    device: Any
    cuda: Any

    def close(self) -> None:
        """Free the device memory; the pinned memory goes with its last array."""
        self.device.free()

    def staged(self, shape: Shape) -> Staged:
        """Return the start of both memories as a tensor of this shape."""
        size, host = prod(shape) * self.dtype.itemsize, None
        if size <= LARGE_BYTES:
            host = self.host[:size].view(self.dtype).reshape(shape)
        return Staged(
            shape=shape, dtype=self.dtype, host=host, device=self.device, cuda=self.cuda
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The device memory of a StatePair: a run reads memory[turn] and writes memory[1 - turn].

    Both are the same memory where TensorRT updates it in place.
    """

    pair: StatePair
    memory: tuple[Any, Any]
    size: int


def dtype_of(engine: Any, name: str) -> np.dtype[Any]:
    """Return the numpy type of an engine's tensor; raises ModelError if it has none."""
    kind = engine.get_tensor_dtype(name).name
    try:
        return np.dtype(_NUMPY_FROM_TENSORRT[kind])
    except KeyError:
        raise ModelError(
            f"the engine's tensor {name!r} has the type {kind}, which has no numpy form; "
            "export the model with another type there"
        ) from None


def check_interface(
    trt: Any,
    engine: Any,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    states: tuple[StatePair, ...],
) -> None:
    """Raise ModelError if the engine's inputs and outputs are not those of the manifest."""
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    for kind, mode, expected in (
        (
            "inputs",
            trt.TensorIOMode.INPUT,
            {s.name for s in inputs} | {pair.input.name for pair in states},
        ),
        (
            "outputs",
            trt.TensorIOMode.OUTPUT,
            {s.name for s in outputs} | {pair.output for pair in states},
        ),
    ):
        found = {name for name in names if engine.get_tensor_mode(name) == mode}
        if found != expected:
            raise ModelError(
                f"the engine has the {kind} {sorted(found)}, the manifest says "
                f"{sorted(expected)}; pack it again"
            )
