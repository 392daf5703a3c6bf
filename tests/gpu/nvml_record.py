"""Record what NVML says of a GPU under load, and compare the probe with nvidia-smi.

    python -m tests.gpu.nvml_record OUT.json

Needs torch for the load. OUT.json holds the raw answers, as the fake of the tests takes them; what
is printed are the largest differences: memory in percent, utilization in points.
"""

from __future__ import annotations

import ctypes
import json
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from edge.probes.nvml import NvmlProbe

ROUNDS = 20
FIELDS = (
    "memory.used,memory.total,utilization.gpu,power.draw,temperature.gpu,clocks.gr,clocks.max.gr"
)


def load(begun: threading.Event, stop: threading.Event) -> None:
    """Keep the first GPU busy, about half of the time."""
    import torch

    a = torch.randn(8192, 8192, device="cuda", dtype=torch.float16)
    while not stop.is_set():
        began = time.perf_counter()
        for _ in range(20):
            a @ a
        torch.cuda.synchronize()
        begun.set()
        time.sleep(time.perf_counter() - began)


def smi() -> dict[str, float]:
    """Return what nvidia-smi prints for the first GPU."""
    words = ["nvidia-smi", f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits", "-i", "0"]
    line = subprocess.run(words, capture_output=True, check=True, text=True).stdout
    return dict(zip(FIELDS.split(","), map(float, line.split(",")), strict=True))


def recorded() -> dict[str, Any]:
    """Return the raw answers of every function that the probe asks."""
    import pynvml

    asked: dict[str, Any] = {}

    class Recorder:
        def __getattr__(self, name: str) -> Any:
            value = getattr(pynvml, name)
            if not name.startswith("nvmlDeviceGet") or name.endswith(("Count", "ByIndex")):
                return value

            def call(handle: Any, *arguments: Any) -> Any:
                key = " ".join(map(str, (name.removeprefix("nvmlDeviceGet"), *arguments)))
                try:
                    answer = value(handle, *arguments)
                except pynvml.NVMLError as error:
                    asked[key] = {"error": error.value}
                    raise
                asked[key] = plain(answer)
                return answer

            return call

    probe = NvmlProbe(Recorder())
    probe.read()
    probe.close()
    return asked


def plain(answer: Any) -> Any:
    """Return an answer as JSON can hold it."""
    if isinstance(answer, list | ctypes.Array):
        return [plain(one) for one in answer]
    if isinstance(answer, ctypes.Structure):
        return {field[0]: plain(getattr(answer, field[0])) for field in answer._fields_}
    if isinstance(answer, ctypes.Union):
        return bytes(answer).hex()
    return getattr(answer, "__dict__", answer)


def costs() -> dict[str, float]:
    """Return the milliseconds of processor time of each function that the probe asks, medians."""
    import pynvml

    spent: dict[str, list[float]] = {}

    class Timed:
        def __getattr__(self, name: str) -> Any:
            value = getattr(pynvml, name)
            if not callable(value) or not name.startswith("nvml"):
                return value

            def call(*arguments: Any) -> Any:
                began = time.thread_time()
                try:
                    return value(*arguments)
                finally:
                    key = " ".join([name, *(str(one) for one in arguments[1:])])
                    spent.setdefault(key, []).append(time.thread_time() - began)

            return call

    probe = NvmlProbe(Timed())
    for _ in range(ROUNDS):
        probe.read()
    probe.close()
    medians = {name: 1e3 * statistics.median(times) for name, times in spent.items()}
    return dict(sorted(medians.items(), key=lambda item: -item[1]))


def main(out: Path) -> None:
    """Load, read, compare and record."""
    begun, stop = threading.Event(), threading.Event()
    thread = threading.Thread(target=load, args=(begun, stop), daemon=True)
    thread.start()
    assert begun.wait(120.0)
    probe, memory, use, spent = NvmlProbe(), [], [], []
    for _ in range(ROUNDS):
        time.sleep(1.0)
        theirs = smi()
        began = time.thread_time()
        (ours, *_) = probe.read().gpus
        spent.append(time.thread_time() - began)
        assert ours.memory_used_bytes is not None
        assert ours.utilization_percent is not None
        used = theirs["memory.used"] * 2**20
        memory.append(100 * abs(ours.memory_used_bytes - used) / used)
        use.append(abs(ours.utilization_percent - theirs["utilization.gpu"]))
    print(f"memory differs by at most {max(memory):.2f} %, utilization by {max(use):.0f} points")
    print(f"differences in points: {use}")
    print(f"one reading takes {1e3 * statistics.median(spent):.2f} ms of processor time")
    print("milliseconds of each call:", json.dumps(costs(), indent=1))
    print("probe:", probe.read())
    print("nvidia-smi:", smi())
    out.write_text(json.dumps(recorded(), indent=1, default=str) + "\n")
    stop.set()
    thread.join()
    print(out.read_text())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
