"""The agent on TensorRT under load, beside the engine alone.

python -m tests.gpu.serve_load FOLDER MODEL BUNDLE_FOLDER PRECISION
"""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from edge.agent_process import agent_process
from edge.bench.load_client import Load, run_load_in_child
from edge.oip_client import infer_request
from edge.tensorrt_library import load_tensorrt
from edge.trt_session import TrtSession
from tests.gpu.shapes import MODELS

SECONDS, WARM_UP_S = 5.0, 2.0
BATCHES = (1, 8, 16, 32)
# Rows a request, connections, client processes.
LOADS = ((8, 1, 1), (8, 4, 1), (8, 8, 2), (8, 16, 2), (1, 1, 1), (1, 64, 2))
START_TIMEOUT_S = 300.0
TOLERANCE = 0.02


def main(folder: Path, name: str, where: Path, precision: str) -> None:
    interface, arrays = MODELS[name], np.load(folder / f"{name}.npz")
    plan = (folder / f"{name}.{precision}.engine").read_bytes()
    session = TrtSession.open(
        plan, library=load_tensorrt("trt"), inputs=interface.inputs, outputs=interface.outputs,
        profile=interface.profile,
    )  # fmt: skip
    best = 0.0
    for rows in BATCHES:
        feeds = {s.name: np.ascontiguousarray(arrays[s.name][:rows]) for s in interface.inputs}
        rate = rows * runs_per_second(session, feeds)
        best = max(best, rate)
        print(f"engine alone, batch {rows}: {rate:.0f} rows/s", flush=True)
    session.close()
    flags = ["--bundle", "bundle", "--trusted-keys", "keys", "--cache", "cache", "--port", "0"]
    flags += ["--variant", precision, "--queue-size", "512"]
    with agent_process(where, flags, timeout_s=START_TIMEOUT_S) as (url, _):
        for rows, connections, clients in LOADS:
            feeds = {s.name: np.ascontiguousarray(arrays[s.name][:rows]) for s in interface.inputs}
            loaded(url, infer_request(name, feeds).whole(), connections, clients, WARM_UP_S)
            report(url, infer_request(name, feeds).whole(), rows, connections, clients, best)


def runs_per_second(session: TrtSession, feeds: dict[str, np.ndarray]) -> float:
    """Return the rate of runs one after the other."""
    for _ in range(20):
        session.run(feeds)
    begun, runs = time.perf_counter(), 0
    while time.perf_counter() - begun < SECONDS / 2:
        session.run(feeds)
        runs += 1
    return runs / (time.perf_counter() - begun)


def report(
    url: str, request: bytes, rows: int, connections: int, clients: int, best: float
) -> None:
    figures, busy = loaded(url, request, connections, clients, SECONDS)
    rate = rows * figures["rps"]
    print(
        f"agent, {rows} rows a request, {connections} connections: {figures['rps']:.0f} "
        f"requests/s, {rate:.0f} rows/s ({rate / best:.2f} of the engine's best), "
        f"p50 {figures['p50_ms']:.2f} ms, p99 {figures['p99_ms']:.2f} ms, "
        f"{figures['failed']:.0f} failed or wrong, GPU {busy} % busy",
        flush=True,
    )


def loaded(
    url: str, request: bytes, connections: int, clients: int, seconds: float
) -> tuple[dict[str, float], list[int]]:
    """Return what clients in processes of their own saw together, and how busy each GPU was."""
    host, port = url.removeprefix("http://").split(":")
    smi = subprocess.Popen(
        ["nvidia-smi", "--query-gpu=index,utilization.gpu", "--format=csv,noheader,nounits",
         "-lms", "250"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    load = Load(
        host=host, port=int(port), requests=(request,), seconds=seconds,
        connections=connections // clients, tolerance=TOLERANCE,
    )  # fmt: skip
    with ThreadPoolExecutor(clients) as pool:
        outcomes = list(pool.map(run_load_in_child, [load] * clients))
    smi.terminate()
    busy: dict[int, list[int]] = {}
    for line in smi.communicate()[0].decode().splitlines():
        gpu, _, percent = line.partition(",")
        if percent.strip().isdecimal():
            busy.setdefault(int(gpu), []).append(int(percent))
    found = [outcome.latency[200] for outcome in outcomes if 200 in outcome.latency]
    figures: dict[str, float] = {
        "rps": sum(outcome.in_time for outcome in outcomes) / seconds,
        "failed": sum(
            outcome.wrong
            + outcome.lost
            + outcome.unanswered
            + sum(seen.answers for status, seen in outcome.latency.items() if status != 200)
            for outcome in outcomes
        ),
        "requests": sum(seen.answers for o in outcomes for seen in o.latency.values()),
        "p50_ms": max((seen.p50_ms or seen.max_ms for seen in found), default=0.0),
        "p99_ms": max((seen.p99_ms or seen.max_ms for seen in found), default=0.0),
    }
    return figures, [round(np.mean(seen[2:] or [0])) for _, seen in sorted(busy.items())]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4])
