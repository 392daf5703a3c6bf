"""Where the time of engines goes, layer by layer: INT8 beside FP16.

python -m tests.gpu.layer_profile FOLDER BATCH MODEL.PRECISION...
"""

from __future__ import annotations

import collections
import json
import sys
from pathlib import Path

import numpy as np

from edge.tensorrt_library import load_tensorrt
from edge.trt_session import TrtSession
from tests.gpu.shapes import MODELS

RUNS = 100
TOP = 14


def main(folder: Path, batch: int, items: list[str]) -> None:
    library = load_tensorrt("trt")
    trt = library.module

    class Profiler(trt.IProfiler):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.total: dict[str, float] = collections.defaultdict(float)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.total[layer_name] += ms

    for item in items:
        interface = MODELS[item.split(".")[0]]
        arrays = np.load(folder / f"{item.split('.')[0]}.npz")
        session = TrtSession.open(
            (folder / f"{item}.engine").read_bytes(), library=library, inputs=interface.inputs,
            outputs=interface.outputs, profile=interface.profile, use_graphs=False,
        )  # fmt: skip
        feeds = {s.name: np.ascontiguousarray(arrays[s.name][:batch]) for s in interface.inputs}
        shapes = tuple(feeds[s.name].shape for s in interface.inputs)
        for _ in range(10):
            session.run(feeds)
        engine = session._engine
        handle = engine.contexts[engine.profile_for(shapes)].handle
        handle.profiler = profiler = Profiler()
        for _ in range(RUNS):
            session.run(feeds)
        handle.profiler = trt.Profiler()
        text = engine._engine.create_engine_inspector().get_engine_information(
            trt.LayerInformationFormat.JSON
        )
        kinds = {}
        for layer in json.loads(text, strict=False)["Layers"]:
            if isinstance(layer, dict):
                formats = [str(i.get("Format/Datatype", "")) for i in layer.get("Inputs", ())]
                kinds[layer["Name"]] = (layer.get("LayerType", "?"), (formats or ["?"])[0])
        print(f"{item} batch {batch}: {sum(profiler.total.values()) / RUNS:.3f} ms in layers")
        sums: dict[tuple[str, str], list[float]] = collections.defaultdict(lambda: [0, 0.0])
        for name, ms in profiler.total.items():
            entry = sums[kinds.get(name, ("?", "?"))]
            entry[0] += 1
            entry[1] += ms / RUNS
        for (kind, form), (count, ms) in sorted(sums.items(), key=lambda pair: -pair[1][1]):
            print(f"    {ms:7.3f} ms  {count:>3} x {kind}, in {form}")
        for name, ms in sorted(profiler.total.items(), key=lambda pair: -pair[1])[:TOP]:
            kind, form = kinds.get(name, ("?", "?"))
            print(f"      {ms / RUNS:7.4f}  {kind} [{form}] {name[:70]}")
        sys.stdout.flush()
        session.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
