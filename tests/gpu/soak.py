"""Device memory over many runs and many openings; it must not grow.

python -m tests.gpu.soak FOLDER MODEL.PRECISION RUNS OPENINGS
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from edge.tensorrt_library import load_tensorrt
from edge.trt_session import TrtSession
from tests.gpu.shapes import MODELS


def main(folder: Path, item: str, runs: int, openings: int) -> None:
    import pycuda.driver as cuda

    library = load_tensorrt("trt")
    interface = MODELS[item.split(".")[0]]
    plan = (folder / f"{item}.engine").read_bytes()
    arrays = np.load(folder / f"{item.split('.')[0]}.npz")
    feeds = {spec.name: np.ascontiguousarray(arrays[spec.name][:1]) for spec in interface.inputs}

    def opened() -> TrtSession:
        return TrtSession.open(
            plan, library=library, inputs=interface.inputs, outputs=interface.outputs,
            profile=interface.profile,
        )  # fmt: skip

    def used(session: TrtSession) -> int:
        with session.device_context:
            free, total = cuda.mem_get_info()
        return total - free

    session = opened()
    for _ in range(1000):
        session.run(feeds)
    before = used(session)
    for _ in range(runs):
        session.run(feeds)
    print(f"{runs} runs: {before} bytes before, {used(session)} after", flush=True)
    session.close()
    for number in range(openings + 10):
        session = opened()
        for _ in range(5):
            session.run(feeds)
        session.close()
        if number == 9:
            before = used(session)
    print(f"{openings} openings: {before} bytes before, {used(session)} after", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
