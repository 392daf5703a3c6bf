"""What every tensor held, over all samples: as many tensors a pass as memory allows.

Batches are independent, so they run next to each other, each on a core of its own, and what
their observers saw is merged in the order of the samples: the result does not depend on timing.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping, Sequence

import onnx

from calibration.checkpoint import Checkpoints
from calibration.judge import Progress
from calibration.observers import Observer
from calibration.parallel import in_order
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
    checkpoints: Checkpoints | None = None,
) -> dict[str, Observer]:
    """Return an observer of each named tensor after every sample of a part.

    pass_bytes: more tensors than fit are observed in further passes over the samples.
    checkpoints: where to go on from, and to keep what was seen.
    Raises CalibrationError for values that are not finite.
    """
    sizes = _batch_bytes(model, tensors, part)
    groups = _groups(sizes, pass_bytes)
    cores = os.cpu_count() or 1
    workers = max(1, min(cores, pass_bytes // max(1, sum(sizes.values()))))
    observers: dict[str, Observer] = {}
    for number, group in enumerate(groups):
        exposed = with_outputs(model, group)
        begun, seen, key = 0, {name: Observer(name) for name in group}, ""
        if checkpoints is not None:
            key = checkpoints.key(
                exposed.SerializeToString(),
                repr((group, part.reader, part.start, part.stop)).encode(),
            )
            begun, found = checkpoints.load(key)
            seen |= found
        look = functools.partial(_look, Runner(exposed, threads=max(1, cores // workers)), group)
        for rows, batch in in_order(look, part.after(begun), workers):
            for name in group:
                seen[name].merge(batch[name])
            if checkpoints is not None:
                checkpoints.save(key, rows, seen, done=rows == part.rows)
            progress("ranges", number * part.rows + rows, len(groups) * part.rows)
        observers |= seen
    return observers


def _look(
    runner: Runner, group: Sequence[str], batch: tuple[int, Feeds]
) -> tuple[int, dict[str, Observer]]:
    """Return the rows read so far, and what each tensor held on this batch."""
    rows, feeds = batch
    values, seen = {**feeds, **runner.run(feeds)}, {name: Observer(name) for name in group}
    for name, observer in seen.items():
        observer.update(values[name])
    return rows, seen


def float_tensors(model: onnx.ModelProto, part: Part) -> tuple[str, ...]:
    """Return every float tensor that a run computes or is given, weights left out."""
    made = [name for node in model.graph.node for name in node.output if name]
    feeds = _few(part)
    values = {**feeds, **Runner(with_outputs(model, made)).run(feeds)}
    return tuple(name for name, value in values.items() if value.dtype.kind == "f")


def _batch_bytes(model: onnx.ModelProto, tensors: Sequence[str], part: Part) -> dict[str, int]:
    """Return the size of each tensor for a whole batch, judged by the smallest one."""
    feeds = _few(part)
    values = {**feeds, **Runner(with_outputs(model, tensors)).run(feeds)}
    scale = part.reader.batch / row_count(feeds)
    return {name: math.ceil(scale * values[name].nbytes) for name in tensors}


def _groups(sizes: Mapping[str, int], pass_bytes: int) -> list[tuple[str, ...]]:
    """Split tensors so that a batch of each group takes no more than pass_bytes, one at least."""
    groups: list[list[str]] = [[]]
    used = 0
    for name, size in sizes.items():
        if groups[-1] and used + size > pass_bytes:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    return [tuple(group) for group in groups]


def _few(part: Part) -> Feeds:
    smallest = part.reader.smallest
    few = part.reader.part(part.samples, part.start, part.start + smallest)
    return next(iter(few))
