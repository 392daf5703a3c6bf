"""ONNX Runtime on CUDA as a peer: ResNet-50 on the same GPU, through our session for it.

python -m tests.gpu.bench_ort FOLDER; needs onnxruntime-gpu and the libraries it names.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from calibration.half import to_half
from edge.ort_session import OrtSession
from edge.self_test import relative_error
from tests.gpu.shapes import MODELS

WARM_UP, RUNS = 20, 200


def main(folder: Path) -> None:
    print(f"onnxruntime {onnxruntime.__version__}, p50 / p95 in ms of {RUNS}, host to host")
    for name, interface in MODELS.items():
        half = folder / f"{name}.fp16.onnx"
        onnx.save(to_half(onnx.load(folder / f"{name}.onnx")).model, half)
        arrays, output = np.load(folder / f"{name}.npz"), interface.outputs[0].name
        for graph in (folder / f"{name}.onnx", half):
            session = OrtSession.open(
                graph, inputs=interface.inputs, outputs=interface.outputs,
                profile=interface.profile, intra_op_threads=None, device=0,
            )  # fmt: skip
            for batch in (1, 8, 32):
                feeds = {
                    spec.name: np.ascontiguousarray(arrays[spec.name][:batch])
                    for spec in interface.inputs
                }
                times = []
                for _ in range(WARM_UP + RUNS):
                    begun = time.perf_counter()
                    answer = session.run(feeds)[output]
                    times.append(1e3 * (time.perf_counter() - begun))
                error = relative_error(answer, arrays[output][:batch])
                p50, p95 = np.percentile(times[WARM_UP:], (50, 95))
                shown = f"error {error:.1e}, {p50:.3f} / {p95:.3f}"
                print(f"  {graph.stem} batch {batch:>2}: {shown}", flush=True)
            session.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
