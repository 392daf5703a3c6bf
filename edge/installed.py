"""Which backends are installed, without importing them: that would load gigabytes, or crash."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

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
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime"),
}
# These builds of ONNX Runtime can use CUDA; whether they do here, only opening tells.
ONNXRUNTIME_GPU = ("onnxruntime-gpu",)
_VERSION = re.compile(r"^__version__\s*=\s*['\"]([0-9][0-9A-Za-z.+]*)['\"]", re.M)
_SERVER_LIBRARIES = ("tensorrt-cu12-libs", "tensorrt-cu13-libs")


def installed_backends() -> dict[str, str]:
    """Return the version of each module of DISTRIBUTIONS that could be imported here.

    "unknown" is a version as well: the module is there and does not tell.
    """
    found = {}
    for module, distributions in DISTRIBUTIONS.items():
        spec = importlib.util.find_spec(module)
        if spec is not None:
            version = next(filter(None, map(_version, distributions)), None)
            found[module] = version or _version_in(spec.origin) or "unknown"
    if any(_version(name) for name in ONNXRUNTIME_GPU):
        found["onnxruntime_gpu"] = found.get("onnxruntime", "unknown")
    return found


def server_build_of_tensorrt() -> str | None:
    """Return the package index's server build of the TensorRT libraries, if that is installed."""
    return next(filter(_version, _SERVER_LIBRARIES), None)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _version_in(origin: str | None) -> str | None:
    """Return the version that a module's own file spells; system packages may lack metadata."""
    try:
        match = _VERSION.search(Path(origin or "").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return match[1] if match is not None else None
