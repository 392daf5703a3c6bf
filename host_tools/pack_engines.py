"""The variants of a bundle that TensorRT runs: engines, and graphs to build engines from."""

from __future__ import annotations

from pathlib import Path

from calibration.errors import GraphError
from calibration.lint import error_lines
from calibration.model_file import load_model
from calibration.runtime import Runner
from edge.manifest import Precision, Variant
from host_tools.blobs import BlobStore
from host_tools.engine_record import EngineRecord
from host_tools.golden import Run


def engine_variants(
    records: tuple[EngineRecord, ...], folder: Path, store: BlobStore, *, prefix: str
) -> tuple[Variant, ...]:
    """Store what the records name below prefix and return one variant each."""
    variants = []
    for record in records:
        path = f"{prefix}/{record.file}"
        if record.engine is not None:
            store.add(path, (folder / record.file).read_bytes())
            files: tuple[str, ...] = (path,)
        else:
            graph = load_model(folder / record.file)
            problems = error_lines(graph, "jetpack6" if record.typed is False else "jetpack7")
            if problems:
                raise GraphError(f"{folder / record.file}: {problems[0]}; build it again")
            files = store.add_model(path, graph)
        variants.append(
            Variant(
                id=record.id,
                backend=record.backend,
                precision=record.precision,
                files=files,
                engine=record.engine,
                typed=record.typed,
                build_for=record.build_for,
            )
        )
    return tuple(variants)


def reduced_runs(records: tuple[EngineRecord, ...], folder: Path) -> list[tuple[Precision, Run]]:
    """Return what the graphs behind the records compute, in ONNX Runtime on this machine.

    From these the golden tolerance of a precision is measured: no GPU need be here.
    """
    graphs = {(r.precision, r.graph) for r in records if r.precision != "fp32"}
    return [
        (precision, Runner(load_model(folder / graph)).run) for precision, graph in sorted(graphs)
    ]
