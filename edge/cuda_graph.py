"""CUDA graph capture through the driver API: PyCUDA has no call for it.

Source: CUDA Driver API, "Stream Management" and "Graph Management".
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from edge.errors import InferenceError

_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may call what they like


class CudaGraph:
    """Work captured from a stream, launched again as one call; `close` frees it."""

    def __init__(self, cuda: ctypes.CDLL, executable: ctypes.c_void_p, stream: int) -> None:
        self._cuda = cuda
        self._executable = executable
        self._stream = ctypes.c_void_p(stream)

    @classmethod
    def capture(cls, stream: int, enqueue: Callable[[], None]) -> CudaGraph:
        """Return the graph of what enqueue puts on the stream; nothing of it runs now.

        Raises InferenceError if the driver refuses, and whatever enqueue raises; the stream is
        usable again in both cases.
        """
        cuda, graph, executable = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p(), ctypes.c_void_p()
        _check(cuda.cuStreamBeginCapture_v2(ctypes.c_void_p(stream), _THREAD_LOCAL), "begin")
        try:
            enqueue()
        finally:
            status = cuda.cuStreamEndCapture(ctypes.c_void_p(stream), ctypes.byref(graph))
        _check(status, "end")
        status = cuda.cuGraphInstantiateWithFlags(
            ctypes.byref(executable), graph, ctypes.c_ulonglong(0)
        )
        cuda.cuGraphDestroy(graph)
        _check(status, "instantiate")
        return cls(cuda, executable, stream)

    def launch(self) -> None:
        """Put the whole graph on its stream; raises InferenceError."""
        _check(self._cuda.cuGraphLaunch(self._executable, self._stream), "launch")

    def close(self) -> None:
        """Free the graph; it must not be running."""
        if self._executable:
            self._cuda.cuGraphExecDestroy(self._executable)
            self._executable = ctypes.c_void_p()


def _check(status: int, step: str) -> None:
    if status != 0:
        raise InferenceError(f"CUDA graph {step} failed with driver error {status}")
