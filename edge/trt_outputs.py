"""Outputs whose size only a run can tell, such as the boxes that a detector kept."""

from __future__ import annotations

from math import prod
from typing import Any, Protocol

import numpy as np

from edge.errors import InferenceError
from edge.spec import AnyArray

# Some operators ask for nothing when nothing was found; an address is needed all the same.
_SMALLEST_BYTES = 256


class _Memory(Protocol):
    name: str

    def ensure(self, size: int) -> int: ...

    def note_shape(self, shape: tuple[int, ...]) -> None: ...


class GrowingOutput:
    """Device memory that grows with the largest answer so far; TensorRT asks for it in each run."""

    def __init__(self, name: str, dtype: np.dtype[Any], trt: Any, cuda: Any) -> None:
        self.name = name
        self.dtype = dtype
        self._cuda = cuda
        self._memory: Any = None
        self._size = 0
        self._shape: tuple[int, ...] | None = None
        self.allocator = _new_allocator(trt, self)

    def ensure(self, size: int) -> int:
        """Return the address of at least size bytes, 0 if there are none left."""
        size = max(size, _SMALLEST_BYTES)
        if size > self._size:
            self.close()
            try:
                self._memory = self._cuda.mem_alloc(size)
            except self._cuda.MemoryError:
                return 0
            self._size = size
        return int(self._memory)

    def note_shape(self, shape: tuple[int, ...]) -> None:
        """Remember what shape the run gave."""
        self._shape = shape

    def copied_as(self, dtype: np.dtype[Any], stream: Any) -> AnyArray:
        """Return the answer of the last run, which must be over, as a new array of the caller."""
        if self._shape is None or self._memory is None:
            raise InferenceError(
                f"output {self.name!r}: TensorRT gave no result; device memory may have run out"
            )
        found = np.empty(self._shape, self.dtype)
        if prod(self._shape):
            self._cuda.memcpy_dtoh_async(found, self._memory, stream)
            stream.synchronize()
        return found.astype(dtype, copy=False)

    def close(self) -> None:
        """Free the memory."""
        if self._memory is not None:
            self._memory.free()
        self._memory, self._size, self._shape = None, 0, None


def _new_allocator(trt: Any, output: _Memory) -> Any:
    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]  # the base is found at run time
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)

        def reallocate_output(self, name: str, memory: int, size: int, alignment: int) -> int:
            return output.ensure(size)

        def reallocate_output_async(
            self, name: str, memory: int, size: int, alignment: int, stream: int
        ) -> int:
            return output.ensure(size)

        def notify_shape(self, name: str, shape: Any) -> None:
            output.note_shape(tuple(shape))

    return Allocator()
