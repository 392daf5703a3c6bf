"""Build the benchmark's engines, keeping timing caches.

python -m tests.gpu.build_engines FOLDER CACHE_FOLDER MODEL.PRECISION...
"""

from __future__ import annotations

import sys
from pathlib import Path

from edge.engine_builder import EngineRequest, engine_from_onnx
from edge.tensorrt_library import load_tensorrt
from tests.gpu.shapes import profiles

LEVEL = 3


def main(folder: Path, caches: Path, names: list[str]) -> None:
    library = load_tensorrt("trt")
    caches.mkdir(parents=True, exist_ok=True)
    for item in names:
        name, precision = item.split(".")
        source = folder / (f"{name}.int8.onnx" if precision == "int8" else f"{name}.onnx")
        cache = caches / f"{item}.cache"
        request = EngineRequest(
            onnx=source,
            precision=precision,  # type: ignore[arg-type]
            profiles=profiles(name),
            workspace_bytes=8 << 30,
            optimization_level=LEVEL,
            timing_cache=cache.read_bytes() if cache.exists() else b"",
        )
        built = engine_from_onnx(request, library)
        (folder / f"{item}.engine").write_bytes(built.plan)
        cache.write_bytes(built.timing_cache)
        size = len(built.plan) / 1e6
        print(f"built {item}: {built.seconds:.1f} s, {size:.1f} MB, level {LEVEL}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
