"""Where the time of engines goes, layer by layer: INT8 beside FP16.

python -m tests.gpu.layer_profile FOLDER BATCH MODEL.PRECISION...
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from edge.bench.measurements import LayerTimes
from edge.bench.report import layer_tables
from edge.bench.trt_layers import layers_of_runs
from edge.tensorrt_library import load_tensorrt
from edge.trt_session import TrtSession
from tests.gpu.shapes import MODELS

RUNS = 100


def main(folder: Path, batch: int, items: list[str]) -> None:
    library = load_tensorrt("trt")
    for item in items:
        interface = MODELS[item.split(".")[0]]
        arrays = np.load(folder / f"{item.split('.')[0]}.npz")
        session = TrtSession.open(
            (folder / f"{item}.engine").read_bytes(), library=library, inputs=interface.inputs,
            outputs=interface.outputs, profile=interface.profile, use_graphs=False,
        )  # fmt: skip
        feeds = {s.name: np.ascontiguousarray(arrays[s.name][:batch]) for s in interface.inputs}
        for _ in range(10):
            session.run(feeds)
        layers = layers_of_runs(session, feeds, runs=RUNS, trt=library.module)
        times = LayerTimes(
            where=item, source="IProfiler", rows=batch, runs=RUNS, layers=layers, backend="trt",
            run_ms=sum(layer.mean_ms for layer in layers),
        )  # fmt: skip
        print(layer_tables(times), flush=True)
        session.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
