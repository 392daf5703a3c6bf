"""What loading a model costs in the three forms it can lie on disk.

    python -m tests.bench_loading FOLDER     a folder that tests.minilm has filled

Each form is opened in processes of its own; printed are the medians.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

from edge.bundle import blob_path
from edge.manifest_reading import manifest_from_bytes

RUNS = 5
CHILD = """
import sys, time
from pathlib import Path
from edge.onnxruntime_library import load_onnxruntime
ort = load_onnxruntime()
options = ort.SessionOptions()
options.log_severity_level = 3
def memory(field):
    return int(Path("/proc/self/status").read_text().split(field + ":")[1].split()[0]) / 1000
source = Path(sys.argv[2])
before, start = memory("VmRSS"), time.perf_counter()
model = source.read_bytes() if sys.argv[1] == "bytes" else str(source)
session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
del model
print(time.perf_counter() - start, memory("VmRSS") - before, memory("VmHWM"))
"""


def main(folder: Path) -> None:
    manifest = manifest_from_bytes((folder / "bundle" / "manifest.json").read_bytes())
    graph = manifest.artifact(manifest.models[0].variants[0].files[0])
    blob = blob_path(folder / "bundle", graph.sha256)
    forms = {
        "one file, as bytes": ("bytes", folder / "minilm.onnx"),
        "one file, by path": ("path", folder / "minilm.onnx"),
        "graph and weights file, by path": ("path", blob),
    }
    results: dict[str, list[list[float]]] = {name: [] for name in forms}
    for _ in range(RUNS):
        for name, (how, source) in forms.items():
            command = [sys.executable, "-c", CHILD, how, str(source)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results[name].append([float(value) for value in output.split()])
    for name, rows in results.items():
        load_s, growth_mb, peak_mb = (
            statistics.median(column) for column in zip(*rows, strict=True)
        )
        print(f"{name}: load {load_s:.2f} s, growth {growth_mb:.0f} MB, peak {peak_mb:.0f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
