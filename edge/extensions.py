"""The Open Inference Protocol's extensions that clients of Triton know: config, statistics, index.

Sources: triton-inference-server/server docs/protocol, extension_model_configuration.md,
extension_statistics.md and extension_model_repository.md.
"""

from __future__ import annotations

from typing import Any

import msgspec

from edge.manifest import Backend, Model
from edge.served import Served, ServedModel
from edge.serving import Serving
from edge.spec import Datatype, TensorSpec

EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")
PLATFORM_FROM_BACKEND: dict[Backend, str] = {
    "ort": "onnx_onnxv1",
    "trt": "tensorrt_plan",
    "trt-rtx": "tensorrt_plan",
}
_TRITON_BACKEND: dict[Backend, str] = {
    "ort": "onnxruntime",
    "trt": "tensorrt",
    "trt-rtx": "tensorrt",
}


class IndexRequest(msgspec.Struct, frozen=True):
    """Which models to list."""

    ready: bool = False


class ChangeRequest(msgspec.Struct, frozen=True):
    """How to load or unload; a signed bundle gives nothing to choose."""

    parameters: dict[str, Any] = {}


def backend_of(serving: Serving, model: Model) -> Backend:
    """Return what serves a model, or would first, while it opens."""
    served = serving.served.get(model.name)
    return (model.variants[0] if served is None else served.choice.variant).backend


def model_config(serving: Serving, model: Model) -> dict[str, Any]:
    """Return a model's ModelConfig; dims leave the batch out where max_batch_size is not 0."""
    served = serving.served.get(model.name)
    rows = model.max_batch_size
    backend = backend_of(serving, model)
    on_gpu = served is not None and served.choice.on_gpu
    config: dict[str, Any] = {
        "name": model.name,
        "platform": PLATFORM_FROM_BACKEND[backend],
        "backend": _TRITON_BACKEND[backend],
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": rows,
        "input": [_tensor(spec, rows) for spec in model.inputs],
        "output": [_tensor(spec, rows) for spec in model.outputs],
        "instance_group": [
            {
                "kind": "KIND_GPU" if on_gpu else "KIND_CPU",
                "count": _instances(served),
            }
        ],
        "model_transaction_policy": {"decoupled": model.chat is not None},
        "parameters": {},
    }
    if isinstance(served, ServedModel) and served.worker.max_batch_rows > 1:
        config["dynamic_batching"] = {
            "preferred_batch_size": [served.worker.max_batch_rows],
            "priority_levels": 9,
            "default_priority_level": 5,
        }
    return config


def model_stats(serving: Serving, models: tuple[Model, ...]) -> dict[str, Any]:
    """Return the counters of some models; those that are not open have none."""
    reports = []
    for model in models:
        served = serving.served.get(model.name)
        if served is not None:
            report = served.statistics.report(model.name, model.version)
            reports.append({**report, "memory_usage": _memory_usage(served)})
    return {"model_stats": reports}


def repository_index(serving: Serving, *, ready_only: bool) -> list[dict[str, str]]:
    """Return every model that is served or could be, with its state."""
    entries = []
    for model in serving.models:
        ready = serving.is_model_ready(model.name)
        note = serving.notes.get(model.name)
        state = "READY" if ready else "UNAVAILABLE" if note is None else note.change
        if ready or not ready_only:
            entries.append(
                {
                    "name": model.name,
                    "version": model.version,
                    "state": state,
                    "reason": "" if ready else serving.model_condition(model.name),
                }
            )
    return entries


def _memory_usage(served: Served) -> list[dict[str, Any]]:
    if served.memory_bytes is None:
        return []
    kind = "GPU" if served.choice.on_gpu else "CPU"
    return [
        {"type": kind, "id": device, "byte_size": served.memory_bytes}
        for device in range(_instances(served))
    ]


def _instances(served: Served | None) -> int:
    return len(served.worker.workers) if isinstance(served, ServedModel) else 1


def _tensor(spec: TensorSpec, rows: int) -> dict[str, Any]:
    dims = spec.wire_shape[1:] if rows else spec.wire_shape
    return {"name": spec.name, "data_type": _data_type(spec.datatype), "dims": dims}


def _data_type(datatype: Datatype) -> str:
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"
