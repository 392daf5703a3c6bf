"""What every tensor held, over all samples: as many tensors a pass as memory allows."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from calibration.judge import Progress
from calibration.observers import Observer
from calibration.parts import Part, row_count
from calibration.runtime import Runner, with_outputs
from edge.spec import Feeds

# Of tensors that one pass keeps alive for observation, a batch of them.
PASS_BYTES = 2 << 30


def observe(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    part: Part,
    progress: Progress,
    *,
    pass_bytes: int = PASS_BYTES,
) -> dict[str, Observer]:
    """Return an observer of each named tensor after every sample of a part.

    pass_bytes: more tensors than fit are observed in further passes over the samples.
    Raises CalibrationError for values that are not finite.
    """
    groups = _groups(model, tensors, part, pass_bytes)
    observers = {name: Observer(name) for name in tensors}
    done = 0
    for group in groups:
        runner = Runner(with_outputs(model, group))
        for feeds in part:
            values = {**feeds, **runner.run(feeds)}
            for name in group:
                observers[name].update(values[name])
            done += row_count(feeds)
            progress("ranges", done, len(groups) * part.rows)
    return observers


def float_tensors(model: onnx.ModelProto, part: Part) -> tuple[str, ...]:
    """Return every float tensor that a run computes or is given, weights left out."""
    made = [name for node in model.graph.node for name in node.output if name]
    feeds = _few(part)
    values = {**feeds, **Runner(with_outputs(model, made)).run(feeds)}
    return tuple(name for name, value in values.items() if value.dtype.kind == "f")


def _groups(
    model: onnx.ModelProto, tensors: Sequence[str], part: Part, pass_bytes: int
) -> list[tuple[str, ...]]:
    """Split tensors so that a batch of each group takes no more than pass_bytes, one at least."""
    feeds = _few(part)
    values = {**feeds, **Runner(with_outputs(model, tuple(tensors))).run(feeds)}
    scale = part.reader.batch / row_count(feeds)
    groups: list[list[str]] = [[]]
    used = 0.0
    for name in tensors:
        size = scale * values[name].nbytes
        if groups[-1] and used + size > pass_bytes:
            groups.append([])
            used = 0.0
        groups[-1].append(name)
        used += size
    return [tuple(group) for group in groups]


def _few(part: Part) -> Feeds:
    smallest = part.reader.smallest
    few = part.reader.part(part.samples, part.start, part.start + smallest)
    return next(iter(few))
