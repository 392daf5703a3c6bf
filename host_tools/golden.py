"""The golden set: real inputs and the fp32 outputs that a device must reproduce."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from calibration.samples import Samples
from edge.errors import EdgeError, UsageError
from edge.manifest import Golden, GoldenCase, GoldenTensor
from edge.self_test import relative_error
from edge.session import Session
from edge.spec import AnyArray, Feeds, Profile, datatype_from_numpy

FLOAT_TOLERANCE = 1e-3  # other CPUs sum in another order; a wrong weight is far beyond this
INT8_MARGIN = 1.5
INT8_FLOOR = 0.02
MAX_TOLERANCE = 0.5  # beyond it, another model would pass
MAX_ROWS = 8


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
    sessions: Mapping[str, Session],
    store: Callable[[str, bytes], object],
    *,
    prefix: str,
) -> Golden:
    """Run the fp32 session on every case, store all tensors, and return the Golden.

    sessions: precision to session, "fp32" among them. The tolerance of fp32 is fixed; that of
    int8 is what was measured here times a margin, since integer kernels differ between CPUs.
    store: called as (artifact path, content).
    Raises GoldenError for an output that is not finite, and for a precision so far from fp32 that
    its self-test would accept anything.
    """
    kept = []
    worst = dict.fromkeys(sessions, 0.0)
    for number, feeds in enumerate(cases):
        reference = sessions["fp32"].run(feeds)
        for name, value in reference.items():
            if not np.isfinite(value).all():
                raise GoldenError(
                    f"output {name!r} of the fp32 model is not finite on golden case {number}, so "
                    "no device could be checked against it; give other --golden samples"
                )
        for precision, session in sessions.items():
            outputs = session.run(feeds)
            errors = [relative_error(outputs[name], value) for name, value in reference.items()]
            worst[precision] = max(worst[precision], *errors)

        def tensors(
            kind: str, arrays: Mapping[str, AnyArray], number: int = number
        ) -> tuple[GoldenTensor, ...]:
            return tuple(
                _tensor(f"{prefix}/{number}/{kind}/{name}.bin", name, array, store)
                for name, array in arrays.items()
            )

        kept.append(
            GoldenCase(inputs=tensors("inputs", feeds), outputs=tensors("outputs", reference))
        )
    tolerance = {
        precision: FLOAT_TOLERANCE
        if precision == "fp32"
        else max(INT8_FLOOR, round(INT8_MARGIN * error, 6))
        for precision, error in worst.items()
    }
    for precision, limit in tolerance.items():
        if not limit <= MAX_TOLERANCE:
            raise GoldenError(
                f"{precision} is off by {worst[precision]:.2f} (relative) from fp32 on the golden "
                "set, so no self-test could tell it from a broken one; calibrate again, with "
                "--keep-float for the worst layers, or pack without --int8"
            )
    return Golden(cases=tuple(kept), tolerance=tolerance)


def _tensor(
    path: str, name: str, array: AnyArray, store: Callable[[str, bytes], object]
) -> GoldenTensor:
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    store(path, little.tobytes())
    return GoldenTensor(
        name=name, datatype=datatype_from_numpy(array.dtype), shape=array.shape, artifact=path
    )
