"""What a graph takes of memory, measured in a fresh process that runs it as the agent does.

The figure is the peak of resident memory above that of a process that has imported ONNX Runtime
and no more: mapped weights that were touched, their rearranged copies, the arena, the feeds and
the outputs. The peak is often that of opening, when weights and their copies are both there.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from edge.errors import EdgeError, ModelError
from edge.manifest import Count
from edge.onnxruntime_library import load_onnxruntime
from edge.ort_session import OrtSession
from edge.spec import (
    NUMPY_FROM_DATATYPE,
    AnyArray,
    Datatype,
    Feeds,
    Profile,
    TensorSpec,
    datatype_from_numpy,
)

TIMEOUT_S = 600.0
# Twice at the largest: with the shapes known, ONNX Runtime plans one block for the second run.
_ORDER = ("min", "max", "max")
# The child finds its modules where this process did, whatever its working directory.
_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from host_tools.memory_probe import main; main()"
)
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # see proc_pid_clear_refs(5)


class UnmeasuredError(EdgeError):
    """Memory could not be measured here, which says nothing about the model."""

    code = "unmeasured"


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """Values of one input, to be repeated to any shape: token ids stay in range that way."""

    datatype: Datatype
    content: bytes

    def in_shape(self, shape: tuple[int, ...]) -> AnyArray:
        """Return an array of this shape, filled with the values over and over."""
        values = np.frombuffer(self.content, NUMPY_FROM_DATATYPE[self.datatype])
        return np.resize(values, shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRequest:
    """A graph on disk, its interface, and values for every input."""

    graph: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profile: Profile
    threads: int
    values: dict[str, Values]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReport:
    """What the child says: the peak above its baseline, or the error that ended it."""

    peak_bytes: Count = 0
    error: str | None = None


def values_from_feeds(feeds: Feeds) -> dict[str, Values]:
    """Return what a ProbeRequest takes of real feeds."""
    return {
        name: Values(datatype=datatype_from_numpy(array.dtype), content=array.tobytes())
        for name, array in feeds.items()
    }


def peak_memory_bytes(request: ProbeRequest, *, timeout_s: float = TIMEOUT_S) -> int:
    """Open the graph in a child, run it at the profile's smallest and largest shape; return bytes.

    Raises ModelError if the model does not open or run there, UnmeasuredError if the child was
    killed or too slow: this machine has less memory or time than the profile's largest shape needs.
    """
    command = [sys.executable, "-c", _CHILD, json.dumps(sys.path)]
    try:
        done = subprocess.run(
            command, input=msgspec.json.encode(request), capture_output=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired as error:
        raise UnmeasuredError(
            f"running {request.graph} at its smallest and largest shape takes more than "
            f"{timeout_s:g} s here; export it with a narrower profile"
        ) from error
    if done.returncode < 0:
        raise UnmeasuredError(
            f"the process that ran {request.graph} at its largest shape was killed by "
            f"{signal.Signals(-done.returncode).name}; it needs more memory than is free here"
        )
    try:
        report = msgspec.json.decode(done.stdout, type=ProbeReport)
    except msgspec.MsgspecError as error:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise UnmeasuredError(
            f"the process that ran {request.graph} ended with status {done.returncode}: {last}"
        ) from error
    if report.error is not None:
        raise ModelError(
            f"the model does not keep what its profile promises: {report.error}; export it with a "
            "narrower profile"
        )
    return report.peak_bytes


def main() -> None:
    """Read a ProbeRequest from standard input and print the ProbeReport; for the child."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=ProbeRequest)
    try:
        report = ProbeReport(peak_bytes=_measure(request))
    except EdgeError as error:
        report = ProbeReport(error=str(error))
    sys.stdout.buffer.write(msgspec.json.encode(report))


def _measure(request: ProbeRequest) -> int:
    load_onnxruntime()
    before = _resident_bytes("VmRSS")
    # Not ru_maxrss: a child inherits that from the process that started it.
    with contextlib.suppress(OSError):  # where a container forbids it, the imports' peak stays in
        _CLEAR_REFS.write_text(_RESET_PEAK)
    session = OrtSession.open(
        Path(request.graph),
        inputs=request.inputs,
        outputs=request.outputs,
        profile=request.profile,
        intra_op_threads=request.threads,
    )
    for feeds in _feeds(request):
        session.run(feeds)
    return max(0, _resident_bytes("VmHWM") - before)


def _feeds(request: ProbeRequest) -> Iterator[dict[str, AnyArray]]:
    for size in _ORDER:
        yield {
            spec.name: request.values[spec.name].in_shape(_shape(spec, request.profile, size))
            for spec in request.inputs
        }


def _shape(spec: TensorSpec, profile: Profile, size: str) -> tuple[int, ...]:
    bounds = profile.ranges.get(spec.name)
    if bounds is None:  # only an input of a fixed shape has no bounds
        return tuple(dim for dim in spec.shape if isinstance(dim, int))
    return bounds.min if size == "min" else bounds.max


def _resident_bytes(field: str) -> int:
    """Return VmRSS or VmHWM of this process."""
    lines = _STATUS.read_text().splitlines()
    line = next(line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) << 10
