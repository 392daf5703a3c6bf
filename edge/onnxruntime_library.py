"""The one place that imports onnxruntime: quietly, and without its telemetry."""

from __future__ import annotations

import contextlib
import io
import os
import platform
from pathlib import Path
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


def session_options(onnxruntime: Any) -> Any:
    """Return new options under which int8 is right on every CPU.

    x86 without VNNI multiplies uint8 by int8 in instructions that saturate at 16 bits: a net that
    is right elsewhere lost 11 points of its accuracy on such a CPU. With this entry ONNX Runtime
    takes instructions that do not; CPUs with VNNI run as without it.
    Source: onnxruntime_session_options_config_keys.h, kOrtSessionOptionsAvx2PrecisionMode.
    """
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def int8_saturates(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this may be such a CPU; see `session_options`.

    Where it is not, its entry does nothing but convert all int8 weights, whose copies make the
    peak of memory half as high again.
    """
    if platform.machine() not in {"x86_64", "AMD64"}:
        return False
    try:
        return "vnni" not in cpuinfo.read_text()
    except OSError:
        return True


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
