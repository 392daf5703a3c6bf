"""Parity: does ONNX Runtime give the numbers that torch gave?

Per output, the relative L2 error ||y - expected|| / ||expected|| must not exceed the tolerance.
Outputs smaller than RMS_FLOOR are measured as if they were that large: around zero the quotient
would only show rounding. Another shape, another dtype, a NaN or an infinity is always a mismatch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from calibration.errors import GraphError
from calibration.runtime import Runner
from edge.spec import AnyArray, Feeds
from host_tools.errors import ExportError, ParityError
from host_tools.shapes import shape_text, shapes_text

DEFAULT_TOLERANCE = 1e-4
RMS_FLOOR = 1e-3
ADVICE = (
    "nothing is written; look for a size or branch that the trace froze, narrow --shape, or try "
    "the other exporter with --opset 17 or 18"
)

Run = Callable[[Feeds], dict[str, AnyArray]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Feeds and the outputs they must give."""

    feeds: dict[str, AnyArray]
    expected: dict[str, AnyArray]

    @property
    def shapes(self) -> str:
        """The input shapes in one line."""
        return shapes_text({name: array.shape for name, array in self.feeds.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One output compared at one set of shapes."""

    shapes: str
    output: str
    relative_error: float
    max_abs_error: float


def run_with_ort(model: onnx.ModelProto) -> Run:
    """Return a function that runs the model in ONNX Runtime on the CPU.

    Both steps raise ExportError with the runtime's reason.
    """
    try:
        runner = Runner(model)
    except GraphError as error:
        raise ExportError(str(error)) from error

    def run(feeds: Feeds) -> dict[str, AnyArray]:
        try:
            return runner.run(feeds)
        except GraphError as error:
            raise ExportError(f"{error}; {ADVICE}") from error

    return run


def compare(run: Run, cases: Sequence[Case], *, tolerance: float) -> tuple[Check, ...]:
    """Return one Check per case and output.

    Raises ParityError naming the worst output and its shapes if one is beyond the tolerance.
    """
    checks = []
    for case in cases:
        got = run(case.feeds)
        for name, expected in case.expected.items():
            checks.append(_check(case, name, got[name], expected))
    beyond = [c for c in checks if c.relative_error > tolerance]
    if beyond:
        worst = max(beyond, key=lambda check: check.relative_error)
        raise ParityError(
            f"output {worst.output!r} at {worst.shapes}: relative error "
            f"{worst.relative_error:.2g}, max abs {worst.max_abs_error:.2g}, allowed "
            f"{tolerance:.2g} ({len(beyond)} of {len(checks)} checks fail); {ADVICE}"
        )
    return tuple(checks)


def _check(case: Case, name: str, got: AnyArray, expected: AnyArray) -> Check:
    if got.shape != expected.shape or got.dtype != expected.dtype:
        raise ParityError(
            f"output {name!r} at {case.shapes}: {got.dtype} {shape_text(got.shape)}, torch gives "
            f"{expected.dtype} {shape_text(expected.shape)}; {ADVICE}"
        )
    relative, absolute = _errors(got, expected)
    return Check(shapes=case.shapes, output=name, relative_error=relative, max_abs_error=absolute)


def _errors(got: AnyArray, expected: AnyArray) -> tuple[float, float]:
    a, b = got.astype(np.float64), expected.astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return math.inf, math.inf
    length = max(float(np.linalg.norm(b)), RMS_FLOOR * math.sqrt(b.size))
    return float(np.linalg.norm(a - b)) / length, float(np.abs(a - b).max())
