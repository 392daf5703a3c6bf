"""Which TensorRT is installed, without importing it: that would load gigabytes, or crash."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping

# Module name to the distributions that carry its version, most exact first.
DISTRIBUTIONS: Mapping[str, tuple[str, ...]] = {
    "tensorrt": (
        "tensorrt-cu13-bindings",
        "tensorrt-cu12-bindings",
        "tensorrt-cu13",
        "tensorrt-cu12",
        "tensorrt",
    ),
    "tensorrt_rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
}


def installed_tensorrt() -> dict[str, str]:
    """Return the version of each TensorRT module that could be imported here."""
    found = {}
    for module, distributions in DISTRIBUTIONS.items():
        if importlib.util.find_spec(module) is None:
            continue
        version = next(filter(None, map(_version, distributions)), None)
        if version is not None:
            found[module] = version
    return found


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
