"""The agent under real HTTP on TensorRT: right answers, and the time from exec to the first one.

python -m tests.gpu.serve FOLDER MODEL BUNDLE_FOLDER PRECISION...
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np

from edge.agent_process import agent_process
from edge.http_client import AgentClient
from edge.oip_client import infer
from edge.self_test import relative_error
from tests.gpu.shapes import MODELS

RUNS = 200
START_TIMEOUT_S = 900.0  # with two builds, if the first fails its self-test
# What nobody can leave out: Python, the libraries, a context, the engine's own deserialization.
BARE = """
import sys, time
import numpy, tensorrt as trt, pycuda.driver as cuda
cuda.init()
context = cuda.Device(0).retain_primary_context()
context.push()
plan = open(sys.argv[1], "rb").read()
engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(plan)
execution = engine.create_execution_context()
context.pop()
"""


def main(folder: Path, name: str, where: Path, precisions: list[str]) -> None:
    interface, arrays = MODELS[name], np.load(folder / f"{name}.npz")
    output = interface.outputs[0].name
    for precision in precisions:
        flags = ["--bundle", "bundle", "--trusted-keys", "keys", "--cache", "cache"]
        flags += ["--variant", precision, "--port", "0"]
        starts = []
        for _ in range(3):
            begun = time.perf_counter()
            with agent_process(where, flags, timeout_s=START_TIMEOUT_S) as (url, _process):
                client = AgentClient(url)
                feeds = {s.name: arrays[s.name][:1] for s in interface.inputs}
                infer(client, name, feeds)
                starts.append(time.perf_counter() - begun)
                if len(starts) == 1:
                    _report(client, url, interface, arrays, output, precision)
        if precision.endswith("-here"):
            print(
                f"{name} {precision}: built, tried and answered after {starts[0]:.0f} s", flush=True
            )
            continue
        bare = [_bare(folder / f"{name}.{precision}.engine") for _ in range(3)]
        print(
            f"{name} {precision}: exec to first answer {starts[0]:.2f} s with the trial in a "
            f"child, {min(starts[1:]):.2f} s after it; python, TensorRT, context and "
            f"deserialization alone {min(bare):.2f} s",
            flush=True,
        )


def _report(
    client: AgentClient, url: str, interface: object, arrays: object, output: str, precision: str
) -> None:
    with urllib.request.urlopen(f"{url}/telemetry") as answer:
        model = json.load(answer)["models"][0]
    test = model["self_test"]
    print(
        f"{model['name']} {precision}: served by {model['means']}, ready {model['ready']}, "
        f"self-test {test['relative_error']:.1e} of {test['tolerance']:.0e}"
    )
    for batch in (1, 8, 32):
        feeds = {s.name: arrays[s.name][:batch] for s in interface.inputs}  # type: ignore[attr-defined,index]
        answer = infer(client, model["name"], feeds)[output]
        error = relative_error(answer, arrays[output][:batch])  # type: ignore[index]
        times = []
        for _ in range(RUNS if batch == 1 else RUNS // 4):
            begun = time.perf_counter()
            infer(client, model["name"], feeds)
            times.append(1e3 * (time.perf_counter() - begun))
        print(
            f"  batch {batch:>2} over HTTP: error {error:.1e}, p50 {np.percentile(times, 50):.2f}"
            f" / p95 {np.percentile(times, 95):.2f} ms",
            flush=True,
        )


def _bare(engine: Path) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", BARE, engine], check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
