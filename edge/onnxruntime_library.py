"""The one place that imports onnxruntime: quietly, and without its telemetry."""

from __future__ import annotations

import contextlib
import io
import os
from typing import Any

from edge.errors import BackendUnavailableError, first_line


def load_onnxruntime() -> Any:
    """Return the onnxruntime module; raises BackendUnavailableError if it cannot be imported.

    Since 1.31 its Linux wheels write a device id under ~/.cache and report usage over HTTPS. Only
    the environment variable stops that before it starts; the Python call comes too late.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendUnavailableError(
            f"onnxruntime is not importable: {first_line(error)}; pip install 'edge-kit[ort]'"
        ) from error
    return onnxruntime


def preload_cuda(onnxruntime: Any) -> None:
    """Load the CUDA and cuDNN libraries that pip installed, which the linker would not find.

    What is missing shows when the session starts, with the library's name in ONNX Runtime's log.
    """
    if hasattr(onnxruntime, "preload_dlls"):  # from 1.21
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it did not find
            onnxruntime.preload_dlls()


def onnxruntime_errors() -> tuple[type[Exception], ...]:
    """Return what ONNX Runtime raises: its own classes have no common base but Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [kind for kind in vars(state).values() if isinstance(kind, type)]
    return (*(kind for kind in own if issubclass(kind, Exception)), RuntimeError, ValueError)
