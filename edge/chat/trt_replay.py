"""Work on a stream that comes again and again: a CUDA graph where the driver makes one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from edge.errors import InferenceError

logger = logging.getLogger(__name__)


class Replay(Protocol):
    """Captured work; see `cuda_graph.CudaGraph`."""

    def launch(self) -> None:
        """Put it on its stream."""

    def close(self) -> None:
        """Free it."""


class Plain:
    """Work that is done anew each time."""

    def __init__(self, launch: Callable[[], None]) -> None:
        self.launch = launch

    def close(self) -> None:
        """Do nothing."""


# Makes a graph of what a function puts on the stream with this handle.
Capture = Callable[[int, Callable[[], None]], Replay]


def captured(capture: Capture, stream: int, enqueue: Callable[[], None]) -> Replay:
    """Return a graph of some work, or, where none can be made, the work itself."""
    try:
        return capture(stream, enqueue)
    except InferenceError as error:
        logger.warning("steps without CUDA graphs: %s", error)
        return Plain(enqueue)
