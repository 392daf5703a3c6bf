"""ONNX Runtime as the reference machine: run a model in memory, look at any tensor inside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import onnx

from calibration.errors import GraphError
from edge.errors import first_line
from edge.onnxruntime_library import load_onnxruntime, onnxruntime_errors, session_options
from edge.spec import AnyArray, Feeds
from edge.tensor_bytes import tensor_from_strings, text_from_tensor


class Runner:
    """A model opened in ONNX Runtime on the CPU, for measuring numerics.

    exact: keep Q and DQ as they are written instead of fusing integer kernels, so that the
    result is the arithmetic the graph states, on every CPU.
    """

    def __init__(self, model: onnx.ModelProto, *, exact: bool = True, threads: int = 0) -> None:
        ort = load_onnxruntime()
        options = session_options(ort)
        options.intra_op_num_threads = threads or os.cpu_count() or 1
        options.log_severity_level = 4
        if exact:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        try:
            self._session: Any = ort.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except onnxruntime_errors() as error:
            raise GraphError(f"ONNX Runtime cannot open the model: {first_line(error)}") from error
        self.output_names: tuple[str, ...] = tuple(o.name for o in self._session.get_outputs())

    def run(self, feeds: Feeds) -> dict[str, AnyArray]:
        """Return every graph output; raises GraphError naming the shapes that failed."""
        fed = {n: text_from_tensor(n, x) if x.dtype.hasobject else x for n, x in feeds.items()}
        try:
            values = self._session.run(None, fed)
        except onnxruntime_errors() as error:
            shapes = (f"{name}={'x'.join(map(str, x.shape))}" for name, x in feeds.items())
            raise GraphError(
                f"ONNX Runtime fails at {', '.join(shapes)}: {first_line(error)}"
            ) from error
        return {
            name: tensor_from_strings(value) if value.dtype.hasobject else value
            for name, value in zip(self.output_names, values, strict=True)
        }


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return a copy of the model that also gives the named inner tensors as outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {value.name for value in copy.graph.output}
    skip = known | {t.name for t in copy.graph.initializer} | {v.name for v in copy.graph.input}
    for name in dict.fromkeys(names):
        if name not in skip:
            copy.graph.output.append(onnx.ValueInfoProto(name=name))
    return copy


def run_exposing(model: onnx.ModelProto, feeds: Feeds, names: Sequence[str]) -> dict[str, AnyArray]:
    """Return the named tensors (graph inputs included, weights not) for one run."""
    values = Runner(with_outputs(model, names)).run(feeds)
    values.update(feeds)
    return {name: values[name] for name in dict.fromkeys(names) if name in values}
