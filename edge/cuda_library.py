"""The one place that imports PyCUDA, after the driver itself has said that there is a device."""

from __future__ import annotations

from typing import Any

from edge.cuda_query import cuda_problem
from edge.errors import BackendUnavailableError, first_line


def load_cuda() -> Any:
    """Return pycuda.driver, initialised; raises BackendUnavailableError."""
    problem = cuda_problem()
    if problem is not None:
        raise BackendUnavailableError(problem)
    try:
        import pycuda.driver as cuda
    except ImportError as error:
        raise BackendUnavailableError(
            f"pycuda is not importable: {first_line(error)}; pip install pycuda (it compiles "
            "against the CUDA headers)"
        ) from error
    cuda.init()
    return cuda


class PrimaryContext:
    """The primary context of one device; `with` makes it current in this thread.

    Current only for the length of a call, so that sessions may share a thread and may close in
    any order.
    """

    def __init__(self, cuda: Any, device: int) -> None:
        self._context = cuda.Device(device).retain_primary_context()

    def __enter__(self) -> None:
        self._context.push()

    def __exit__(self, *error: object) -> None:
        self._context.pop()
