"""The self-test: an opened model must reproduce the golden outputs of its bundle."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edge.errors import BundleError, InputError, SelfTestError
from edge.manifest import GoldenTensor, Model, Precision
from edge.spec import AnyArray, Feeds
from edge.tensor_bytes import tensor_from_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTest:
    """The worst relative error over all golden cases, the output it occurred in, the limit."""

    cases: int
    output: str
    relative_error: float
    tolerance: float


def run_self_test(
    model: Model,
    precision: Precision,
    *,
    infer: Callable[[Feeds], dict[str, AnyArray]],
    read: Callable[[str], bytes],
) -> SelfTest:
    """Run every golden case and return the worst error ||y - golden|| / ||golden||.

    read: artifact path -> content.
    Raises SelfTestError naming the output if an error exceeds the tolerance of the precision.
    """
    tolerance = model.golden.tolerance[precision]
    worst, where = 0.0, model.golden.cases[0].outputs[0].name
    for number, case in enumerate(model.golden.cases):
        outputs = infer({tensor.name: tensor_from_golden(tensor, read) for tensor in case.inputs})
        for tensor in case.outputs:
            golden, got = tensor_from_golden(tensor, read), outputs.get(tensor.name)
            if got is None or got.shape != golden.shape:
                shape = None if got is None else list(got.shape)
                raise SelfTestError(
                    f"model {model.name!r}, golden case {number}: output {tensor.name!r} has the "
                    f"shape {shape} instead of {list(golden.shape)}; pack the bundle again"
                )
            error = relative_error(got, golden)
            if not error <= tolerance:
                raise SelfTestError(
                    f"model {model.name!r}, golden case {number}: output {tensor.name!r} "
                    f"{_difference(got, golden, error)}, {precision} allows {tolerance:.2e}; this "
                    "device or backend computes it differently: serve another variant, or pack it "
                    "again"
                )
            if error > worst:
                worst, where = error, tensor.name
    return SelfTest(
        cases=len(model.golden.cases), output=where, relative_error=worst, tolerance=tolerance
    )


def golden_inputs(model: Model, read: Callable[[str], bytes]) -> Feeds:
    """Return the inputs of the first golden case."""
    inputs = model.golden.cases[0].inputs
    return {tensor.name: tensor_from_golden(tensor, read) for tensor in inputs}


def relative_error(got: AnyArray, golden: AnyArray) -> float:
    """Return ||got - golden|| / ||golden|| in the Euclidean norm; ||got|| if golden is zero.

    Strings must be equal: 0 if all are, else infinity, as for strings instead of numbers.
    """
    if "O" in (golden.dtype.kind, got.dtype.kind):
        return 0.0 if np.array_equal(got, golden) else math.inf
    reference = golden.astype(np.float64).ravel()
    scale = float(np.linalg.norm(reference)) or 1.0
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, which no tolerance allows
        return float(np.linalg.norm(got.astype(np.float64).ravel() - reference)) / scale


def _difference(got: AnyArray, golden: AnyArray, error: float) -> str:
    if golden.dtype.kind != "O":
        return f"is off by {error:.2e} (relative)"
    return f"differs in {np.count_nonzero(got != golden)} of {golden.size} strings"


def tensor_from_golden(tensor: GoldenTensor, read: Callable[[str], bytes]) -> AnyArray:
    """Return a golden tensor; read: artifact path -> content. Raises BundleError."""
    content = read(tensor.artifact)
    try:
        return tensor_from_bytes(tensor.name, tensor.datatype, tensor.shape, content)
    except InputError as error:
        raise BundleError(
            f"{tensor.artifact} holds {len(content)} bytes, {tensor.datatype} of the shape "
            f"{list(tensor.shape)} needs others; pack the bundle again"
        ) from error
