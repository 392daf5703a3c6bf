"""The names of a classifier's classes, read from a file."""

from __future__ import annotations

from pathlib import Path

import onnx

from calibration.graph import GraphIndex
from calibration.model_file import specs_from_model
from edge.classes import Classes, problem_with
from edge.errors import UsageError
from edge.files import read_capped

MAX_BYTES = 16 << 20


def classes_from_file(path: Path, model: onnx.ModelProto) -> Classes:
    """Return the classes of a model's first output; one that ends in a Softmax gives no logits.

    Raises UsageError for a file that cannot be read or does not fit the model.
    """
    labels = labels_from_file(path)
    outputs = specs_from_model(model)[1]
    producer = GraphIndex.of(model.graph).producers.get(outputs[0].name)
    softmax = producer is None or producer.op_type != "Softmax"
    classes = Classes(output=outputs[0].name, labels=labels, softmax=softmax)
    problem = problem_with(classes, outputs)
    if problem is not None:
        raise UsageError(f"--class-names {path}: {problem}")
    return classes


def labels_from_file(path: Path) -> tuple[str, ...]:
    """Return the lines of a file; raises UsageError if it cannot be read."""
    if not path.is_file():
        raise UsageError(f"--class-names: no file {path}; give a text file with a class a line")
    try:
        text = read_capped(path, max_bytes=MAX_BYTES, follow_links=True).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"--class-names {path}: not UTF-8 text: {error}") from error
    return tuple(line.strip() for line in text.strip().splitlines())
