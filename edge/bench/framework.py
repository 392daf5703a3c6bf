"""The seam to the framework that a model came from: this package never imports one itself.

An installed package offers it as an entry point of the group GROUP: a callable like `Open`.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Protocol

from edge.errors import BackendUnavailableError
from edge.spec import AnyArray, Feeds, TensorSpec

GROUP = "edge_kit.framework"


class FrameworkModel(Protocol):
    """The original model, opened by its framework."""

    @property
    def on_gpu(self) -> bool:
        """Whether it runs on a GPU."""

    def run(self, feeds: Feeds) -> dict[str, AnyArray]:
        """Return every output, on the host, for one set of feeds."""


# Called with what the user named (package.module:factory, or a folder), the inputs and outputs
# that the model has in its bundle, and the threads of one run; None is the framework's default.
Open = Callable[[str, tuple[TensorSpec, ...], tuple[TensorSpec, ...], "int | None"], FrameworkModel]


def open_in_framework(
    source: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    threads: int | None,
) -> FrameworkModel:
    """Open a model with the first framework that is installed.

    Raises BackendUnavailableError if none is, and whatever opening raises.
    """
    offered = sorted(importlib.metadata.entry_points(group=GROUP), key=lambda entry: entry.name)
    if not offered:
        raise BackendUnavailableError(
            "no framework is installed that could run the original model; pip install "
            "'edge-kit[host]', or leave out --framework"
        )
    try:
        opener: Open = offered[0].load()
    except ImportError as error:
        raise BackendUnavailableError(
            f"{offered[0].name} cannot be imported: {error}; pip install 'edge-kit[host]'"
        ) from error
    return opener(source, inputs, outputs, threads)
