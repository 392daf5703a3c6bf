"""The golden set: real inputs and the fp32 outputs that a device must reproduce."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from calibration.samples import Samples
from edge.errors import EdgeError, UsageError
from edge.manifest import Golden, GoldenCase, GoldenTensor, Precision
from edge.self_test import relative_error
from edge.spec import AnyArray, Feeds, Profile, datatype_from_numpy
from edge.tensor_bytes import bytes_from_tensor

FLOAT_TOLERANCE = 1e-3  # other CPUs sum in another order; a wrong weight is far beyond this
MARGIN = 1.5
FLOOR: Mapping[Precision, float] = {"fp16": 5e-3, "int8": 0.02, "w8a8": 0.05, "int4": 0.05}
MAX_TOLERANCE = 0.5  # beyond it, another model would pass
MAX_ROWS = 8


_WAY_OUT: Mapping[Precision, str] = {
    "fp32": "",
    "fp16": "build again, with --golden or with --keep-fp32 for the worst layers",
    "w8a8": "export with int8, or with other calibration text",
    "int4": "export with int8, or with calibration text",
    "int8": "calibrate again, with --keep-float for the worst layers, or pack without int8",
}

Run = Callable[[Feeds], dict[str, AnyArray]]


class GoldenError(EdgeError):
    """No self-test can be made of these samples and models."""

    code = "golden"


def golden_feeds(samples: Samples, profile: Profile) -> tuple[Feeds, ...]:
    """Return the feeds of the golden cases: the smallest batch the profile allows, and a larger.

    Raises UsageError if there are not enough samples for one case.
    """
    smallest = max((bounds.min[0] for bounds in profile.ranges.values() if bounds.min), default=1)
    largest = min([MAX_ROWS, *(b.max[0] for b in profile.ranges.values() if b.max)])
    cases = []
    for rows in sorted({smallest, max(smallest, largest)}):
        feeds = next(iter(samples.batches(rows, 0, rows)), None)
        if feeds is not None and len(next(iter(feeds.values()))) == rows:
            cases.append(feeds)
    if not cases:
        raise UsageError(f"{samples.count} samples are too few for a golden case of {smallest}")
    return tuple(cases)


def make_golden(
    cases: tuple[Feeds, ...],
    runs: Sequence[tuple[Precision, Run]],
    store: Callable[[str, bytes], object],
    *,
    prefix: str,
) -> Golden:
    """Run every form of the model on every case, store the fp32 tensors, and return the Golden.

    runs: precision and what computes it, fp32 or else the most exact first; a precision may come
    in several forms, the worst counts. The tolerance of fp32 is fixed; that of the others is what
    was measured here times a margin, since kernels differ between devices.
    store: called as (artifact path, content).
    Raises GoldenError for an output that is not finite, and for a precision so far from fp32 that
    its self-test would accept anything.
    """
    kept = []
    worst: dict[Precision, float] = dict.fromkeys((precision for precision, _ in runs), 0.0)
    for number, feeds in enumerate(cases):
        reference = runs[0][1](feeds)
        for name, value in reference.items():
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise GoldenError(
                    f"output {name!r} of the fp32 model is not finite on golden case {number}, so "
                    "no device could be checked against it; give other --golden samples"
                )
        for precision, run in runs:
            outputs = run(feeds)
            errors = [relative_error(outputs[name], value) for name, value in reference.items()]
            worst[precision] = max(worst[precision], *(_or_infinite(error) for error in errors))
        kept.append(
            GoldenCase(
                inputs=golden_tensors(f"{prefix}/{number}/inputs", feeds, store),
                outputs=golden_tensors(f"{prefix}/{number}/outputs", reference, store),
            )
        )
    tolerance: dict[str, float] = {
        precision: FLOAT_TOLERANCE
        if precision == "fp32"
        else max(FLOOR[precision], round(MARGIN * error, 6))
        for precision, error in worst.items()
    }
    for precision, error in worst.items():
        if not tolerance[precision] <= MAX_TOLERANCE:
            raise GoldenError(
                f"{precision} is off by {error:.2f} (relative) from fp32 on the golden set, so no "
                f"self-test could tell it from a broken one; {_WAY_OUT[precision]}"
            )
    return Golden(cases=tuple(kept), tolerance=tolerance)


def _or_infinite(error: float) -> float:
    return error if math.isfinite(error) else math.inf


def golden_tensors(
    prefix: str, arrays: Mapping[str, AnyArray], store: Callable[[str, bytes], object]
) -> tuple[GoldenTensor, ...]:
    """Store arrays below a prefix and return how they are found again."""
    return tuple(
        _tensor(f"{prefix}/{name}.bin", name, array, store) for name, array in arrays.items()
    )


def _tensor(
    path: str, name: str, array: AnyArray, store: Callable[[str, bytes], object]
) -> GoldenTensor:
    store(path, bytes_from_tensor(array))
    return GoldenTensor(
        name=name, datatype=datatype_from_numpy(array.dtype), shape=array.shape, artifact=path
    )
