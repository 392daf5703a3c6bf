"""The one place that imports TensorRT, under either of its names: tensorrt or tensorrt_rtx.

What a version can do is asked of the module with `hasattr`, never read off enum integers: those
were renumbered between 8, 10 and 11.
"""

from __future__ import annotations

import collections
import functools
import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from edge.errors import BackendUnavailableError, first_line

TensorRtBackend = Literal["trt", "trt-rtx"]

_MODULE_FROM_BACKEND: dict[TensorRtBackend, str] = {"trt": "tensorrt", "trt-rtx": "tensorrt_rtx"}
_WAY_OUT: dict[TensorRtBackend, str] = {
    "trt": "on Jetson: apt install python3-libnvinfer and a venv with --system-site-packages; on "
    "a desktop: pip install 'edge-kit[tensorrt]'",
    "trt-rtx": "pip install 'edge-kit[rtx]'",
}
_KEPT_MESSAGES = 8
# TensorRT 8.5 says so whenever its own name-based calls ask for a profile other than the first.
_NOISE = "Using bindingIndex"
STRONG_TYPING_SINCE = (10, 12)

Listener = Callable[[str], None]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRT:
    """An imported TensorRT: its module, its version, and the one logger it accepts per process.

    listeners: told every message, down to the most verbose, while they are in the list.
    """

    backend: TensorRtBackend
    module: Any
    logger: Any
    messages: collections.deque[str] = field(repr=False)
    listeners: list[Listener] = field(repr=False)

    @property
    def version(self) -> str:
        """The full version, such as "8.6.0" or "1.7.1.116"."""
        return str(self.module.__version__)

    @property
    def major_minor(self) -> tuple[int, int]:
        """The first two parts of the version."""
        major, minor = self.version.split(".")[:2]
        return int(major), int(minor)

    @property
    def shares_profiles(self) -> bool:
        """Whether two execution contexts may use one optimization profile."""
        return self.backend == "trt-rtx" or self.major_minor >= (8, 6)

    def last_error(self) -> str:
        """Return what TensorRT said last at error level, or a sentence that it said nothing."""
        return self.messages[-1] if self.messages else "TensorRT gave no reason"

    def first_error(self) -> str:
        """Return what TensorRT said first since `messages` was cleared: the cause of the rest."""
        return self.messages[0] if self.messages else "TensorRT gave no reason"


def takes_types(backend: TensorRtBackend, version: str) -> bool:
    """Whether this TensorRT takes precision from the graph alone, rather than from flags."""
    parts = version.split(".")[:2]
    if backend == "trt-rtx" or not all(part.isdecimal() for part in parts):
        return True
    return tuple(map(int, parts)) >= STRONG_TYPING_SINCE


@functools.cache
def load_tensorrt(backend: TensorRtBackend) -> TensorRT:
    """Return TensorRT; raises BackendUnavailableError if it cannot be imported.

    Once per process and backend: TensorRT ignores every logger after the first.
    """
    name = _MODULE_FROM_BACKEND[backend]
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise BackendUnavailableError(
            f"{name} is not importable: {first_line(error)}; {_WAY_OUT[backend]}"
        ) from error
    messages: collections.deque[str] = collections.deque(maxlen=_KEPT_MESSAGES)
    listeners: list[Listener] = []
    return TensorRT(
        backend=backend,
        module=module,
        logger=_new_logger(module, messages, listeners),
        messages=messages,
        listeners=listeners,
    )


def _new_logger(trt: Any, messages: collections.deque[str], listeners: list[Listener]) -> Any:
    """Return an ILogger that feeds Python's logging, remembers errors and tells the listeners."""
    severity = trt.ILogger.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.ERROR,
        severity.ERROR: logging.ERROR,
        severity.WARNING: logging.WARNING,
        severity.INFO: logging.DEBUG,
        severity.VERBOSE: logging.DEBUG,
    }

    class Logger(trt.ILogger):  # type: ignore[misc]  # the base is found at run time
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, level: Any, message: str) -> None:
            for listener in listeners:
                listener(message)
            if levels[level] >= logging.ERROR:
                messages.append(message)
            if level != severity.VERBOSE and _NOISE not in message:
                logger.log(levels[level], "%s", message)

    return Logger()
