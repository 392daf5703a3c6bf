"""ONNX Runtime, on the CPU or through CUDA, behind the Session seam."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edge.errors import BackendUnavailableError, InferenceError, ModelError, first_line
from edge.onnxruntime_library import (
    load_onnxruntime,
    onnxruntime_errors,
    preload_cuda,
    session_options,
)
from edge.spec import AnyArray, Datatype, Feeds, Profile, TensorSpec, check_feeds
from edge.tensor_bytes import tensor_from_strings, text_from_tensor

_DATATYPE_FROM_ORT: dict[str, Datatype] = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


class OrtSession:
    """An ONNX graph opened by ONNX Runtime; make it with `open`."""

    def __init__(
        self,
        session: Any,
        *,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        profile: Profile,
        runs_anywhere: bool = False,
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.runs_anywhere = runs_anywhere
        self._session = session
        self._profile = profile
        self._output_names = [spec.name for spec in outputs]

    @classmethod
    def open(
        cls,
        graph: Path,
        *,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        profile: Profile,
        intra_op_threads: int | None,
        device: int | None = None,
        trace_to: Path | None = None,
    ) -> OrtSession:
        """Open a graph by path, so that weights kept beside it are memory-mapped, not copied.

        intra_op_threads: None leaves the count to ONNX Runtime (one per physical core).
        device: run on this GPU or not at all (ONNX Runtime itself would fall back in silence);
        None is the CPU. trace_to: where ONNX Runtime times its nodes to; see `end_trace`.
        Raises BackendUnavailableError without onnxruntime, ModelError if the graph does not open
        or is not the model that inputs and outputs describe.
        """
        ort = load_onnxruntime()
        options = session_options(ort)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.intra_op_num_threads = intra_op_threads or 0
        options.log_severity_level = 3
        # Threads may spin inside a run but sleep between runs. Measured with ONNX Runtime 1.31,
        # a 0.2 ms convolution net 200 times a second on 2 cores: always spinning takes 91 % of a
        # core, never spinning 6 % and 0.1 ms more per run, this one 9 % and 0.02 ms more.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if trace_to is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(trace_to)
        provider, settings = "CPUExecutionProvider", {}
        if device is not None:
            provider, settings = "CUDAExecutionProvider", {"device_id": str(device)}
            preload_cuda(ort)
        if provider not in ort.get_available_providers():
            raise BackendUnavailableError(
                f"this build of onnxruntime has no {provider}; pip install onnxruntime-gpu"
            )
        try:
            session = ort.InferenceSession(str(graph), options, providers=[(provider, settings)])
        except onnxruntime_errors() as error:
            raise ModelError(
                f"ONNX Runtime cannot open {graph}: {first_line(error)}; export it again, or "
                "install the onnxruntime version that the bundle was made with"
            ) from error
        if session.get_providers()[0] != provider:
            raise BackendUnavailableError(
                f"ONNX Runtime could not start its {provider} and fell back to "
                f"{session.get_providers()[0]}; install the CUDA and cuDNN libraries it names in "
                "its log"
            )
        _check_interface(session, graph, inputs, outputs)
        return cls(
            session,
            inputs=inputs,
            outputs=outputs,
            profile=profile,
            runs_anywhere=device is None,  # a CUDA context belongs to a thread
        )

    def run(self, feeds: Feeds) -> dict[str, AnyArray]:
        """Return every output for one set of feeds; see `session.Session`."""
        if self._session is None:
            raise InferenceError("the session is closed; open the model again")
        check_feeds(feeds, self.inputs, self._profile)
        # A tensor read in place from a request body may start at any byte; kernels load vectors.
        aligned = {
            name: np.require(array, requirements=("C", "A"))
            if array.dtype.kind != "O"
            else text_from_tensor(name, array)
            for name, array in feeds.items()
        }
        try:
            results = self._session.run(self._output_names, aligned)
        except onnxruntime_errors() as error:
            raise InferenceError(f"ONNX Runtime failed to run: {first_line(error)}") from error
        return {
            name: tensor_from_strings(array) if array.dtype.kind == "O" else array
            for name, array in zip(self._output_names, results, strict=True)
        }

    def end_trace(self) -> Path:
        """Return the file of a trace, complete now, of a session opened with `trace_to`."""
        if self._session is None:
            raise InferenceError("the session is closed; open the model again")
        return Path(self._session.end_profiling())

    def reset_state(self) -> None:
        """Do nothing: these graphs keep no state."""

    def close(self) -> None:
        """Free the graph and its threads."""
        self._session = None


def _check_interface(
    session: Any,
    graph: Path,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
) -> None:
    for kind, nodes, specs in (
        ("inputs", session.get_inputs(), inputs),
        ("outputs", session.get_outputs(), outputs),
    ):
        found = {node.name: _DATATYPE_FROM_ORT.get(node.type, node.type) for node in nodes}
        expected = {spec.name: spec.datatype for spec in specs}
        if found != expected:
            raise ModelError(
                f"{graph} has the {kind} {found}, the manifest says {expected}; pack it again"
            )
