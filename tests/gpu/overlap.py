"""What it gains to stage the next run while one computes.

python -m tests.gpu.overlap FOLDER MODEL.PRECISION...
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from edge.spec import Feeds
from edge.tensorrt_library import load_tensorrt
from edge.trt_session import TrtSession
from tests.gpu.shapes import MODELS

BATCHES = (1, 8, 32)
SECONDS, TURNS = 1.0, 5


def main(folder: Path, names: list[str]) -> None:
    for item in names:
        name, _ = item.split(".")
        interface, arrays = MODELS[name], np.load(folder / f"{name}.npz")
        session = TrtSession.open(
            (folder / f"{item}.engine").read_bytes(), library=load_tensorrt("trt"),
            inputs=interface.inputs, outputs=interface.outputs, profile=interface.profile,
        )  # fmt: skip
        for rows in BATCHES:
            feeds = {s.name: np.ascontiguousarray(arrays[s.name][:rows]) for s in interface.inputs}
            rates = [(alone(session, feeds), overlapped(session, feeds)) for _ in range(TURNS)]
            one, two = np.median(rates, axis=0)
            print(
                f"{item} batch {rows}: {rows * one:.0f} rows/s one after the other, "
                f"{rows * two:.0f} with the next one begun ({two / one:.2f})",
                flush=True,
            )
        session.close()


def alone(session: TrtSession, feeds: Feeds) -> float:
    """Return runs per second, each begun when the one before is done."""
    begun, runs = time.perf_counter(), 0
    while time.perf_counter() - begun < SECONDS:
        session.run(feeds)
        runs += 1
    return runs / (time.perf_counter() - begun)


def overlapped(session: TrtSession, feeds: Feeds) -> float:
    """Return runs per second, each begun while the one before runs."""
    begun, runs = time.perf_counter(), 0
    ahead = session.start(feeds)
    while time.perf_counter() - begun < SECONDS:
        finish, ahead = ahead, session.start(feeds)
        finish()
        runs += 1
    ahead()
    return (runs + 1) / (time.perf_counter() - begun)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
