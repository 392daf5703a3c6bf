"""A device that is this process: PyCUDA's calls on host memory, pieces run by ONNX Runtime.

Addresses are real ones, and everything happens at once. So what a TrtDecoder copies where is
computed for real, and what it reads beyond its memory is an error of a sanitizer, not of a test.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edge.chat.layered import LayeredModel, Piece, WeightsFile, layered_model_from_folder
from edge.chat.trt_buffers import ALIGNMENT_BYTES
from edge.chat.trt_decoder import TrtDecoder

GUARD_BYTES = 4096
_GUARD = 0xA5


class Memory:
    """Memory of the device, between guards that nobody may write to."""

    live: ClassVar[set[Memory]] = set()

    def __init__(self, size: int) -> None:
        whole = np.full(size + 2 * GUARD_BYTES + ALIGNMENT_BYTES, _GUARD, np.uint8)
        begin = -whole.ctypes.data % ALIGNMENT_BYTES  # as a device has it
        self._bytes = whole[begin : begin + size + 2 * GUARD_BYTES]
        self._bytes[GUARD_BYTES:-GUARD_BYTES] = 0xFF  # as numbers all NaN
        Memory.live.add(self)

    def __int__(self) -> int:
        return int(self._bytes.ctypes.data) + GUARD_BYTES

    def free(self) -> None:
        ends = self._bytes[:GUARD_BYTES], self._bytes[-GUARD_BYTES:]
        assert all((end == _GUARD).all() for end in ends), "written beyond its end"
        Memory.live.remove(self)


class Memcpy3D:
    """The fields of pycuda.driver.Memcpy3D that are used, and the copy."""

    src_pitch = src_height = dst_pitch = dst_height = 0
    width_in_bytes = height = depth = 0

    def set_src_device(self, address: int) -> None:
        self._source = address

    def set_dst_device(self, address: int) -> None:
        self._target = address

    def __call__(self, stream: Any) -> None:
        assert self.width_in_bytes <= min(self.src_pitch, self.dst_pitch)
        assert self.height <= min(self.src_height, self.dst_height)
        for z in range(self.depth):
            for y in range(self.height):
                ctypes.memmove(
                    self._target + (z * self.dst_height + y) * self.dst_pitch,
                    self._source + (z * self.src_height + y) * self.src_pitch,
                    self.width_in_bytes,
                )


class Stream:
    handle = 0

    def synchronize(self) -> None:
        pass


class FakeCuda:
    """What a TrtDecoder calls of pycuda.driver."""

    Error = type("Error", (Exception,), {})
    Memcpy3D = Memcpy3D
    Stream = Stream
    mem_alloc = Memory

    @staticmethod
    def pagelocked_empty(shape: Any, dtype: Any) -> np.ndarray:
        return np.empty(shape, dtype)

    @staticmethod
    def memcpy_htod(address: int, array: np.ndarray) -> None:
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    @classmethod
    def memcpy_htod_async(cls, address: int, array: np.ndarray, stream: Any) -> None:
        cls.memcpy_htod(address, array)

    @staticmethod
    def memcpy_dtoh_async(array: np.ndarray, address: int, stream: Any) -> None:
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    @staticmethod
    def memcpy_dtod_async(target: int, source: int, size: int, stream: Any) -> None:
        ctypes.memmove(target, source, size)

    @staticmethod
    def memset_d8_async(address: int, value: int, size: int, stream: Any) -> None:
        ctypes.memset(address, value, size)

    @staticmethod
    def memset_d2d8_async(
        address: int, pitch: int, value: int, width: int, height: int, stream: Any
    ) -> None:
        for row in range(height):
            ctypes.memset(address + row * pitch, value, width)


class OrtPiece:
    """A piece run by ONNX Runtime on tensors at addresses."""

    def __init__(self, graph: bytes) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._session = ort.InferenceSession(graph, options, ["CPUExecutionProvider"])
        self._dtypes = {
            node.name: np.dtype({"float": "f4", "float16": "f2", "int64": "i8"}[node.type[7:-1]])
            for node in (*self._session.get_inputs(), *self._session.get_outputs())
        }

    def dtype(self, name: str) -> np.dtype[Any]:
        return self._dtypes[name]

    def enqueue(self, addresses: Any, stream: Any) -> None:
        feeds = {
            node.name: self._at(addresses[node.name], node) for node in self._session.get_inputs()
        }
        for node, value in zip(
            self._session.get_outputs(), self._session.run(None, feeds), strict=True
        ):
            self._at(addresses[node.name], node)[...] = value

    def _at(self, address: int, node: Any) -> np.ndarray:
        dtype, size = self._dtypes[node.name], int(np.prod(node.shape))
        buffer = (ctypes.c_uint8 * (size * dtype.itemsize)).from_address(address)
        return np.frombuffer(buffer, dtype).reshape(node.shape)

    def close(self) -> None:
        """Keep the session: the next decoder of the same file has it."""


class FakeGraph:
    """Captured work that is done again."""

    def __init__(self, enqueue: Callable[[], None]) -> None:
        self._enqueue = enqueue
        self.launches = 0

    def launch(self) -> None:
        self.launches += 1
        self._enqueue()

    def close(self) -> None:
        pass


_piece = functools.lru_cache(maxsize=64)(OrtPiece)


def open_on_fake(folder: Path, capture: Any = None) -> TrtDecoder:
    """Open the pieces of a folder on the fake device."""
    model = layered_model_from_folder(folder)
    plans = {piece: (folder / piece.file).read_bytes() for piece in model.pieces}
    return open_plans_on_fake(model, WeightsFile(folder / "weights.bin", model), plans, capture)


def open_plans_on_fake(
    model: LayeredModel, weights: Any, plans: Mapping[Piece, bytes], capture: Any = None
) -> TrtDecoder:
    """Open pieces whose engines are their graphs."""
    engines: dict[Piece, Any] = {piece: _piece(plans[piece]) for piece in model.pieces}
    return TrtDecoder(
        model,
        weights,
        engines,
        FakeCuda,
        contextlib.nullcontext(),
        capture or (lambda stream, enqueue: FakeGraph(enqueue)),
    )
