"""Compare /telemetry of a real agent with nvidia-smi while something else keeps the GPU busy.

python -m tests.gpu.telemetry_smi BUNDLE KEYS TORCH_PYTHON

TORCH_PYTHON: a Python with torch for the load, in phases of a steady share of the time. Exits with
1 if memory differs by more than 2 %, or utilization by more than 5 points on average: both read the
driver's newest figure, which counts a sixth of a second, but not at the same moment.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from edge.agent import Agent
from edge.config import AgentConfig
from edge.http_client import AgentClient
from edge.notify import Notifier
from edge.sampler import INTERVAL_S

ROUNDS, SETTLE_S = 15, 4.0
MAX_MEMORY_PERCENT, MAX_POINTS = 2.0, 5.0
FIELDS = ("memory.used", "utilization.gpu", "power.draw", "temperature.gpu", "clocks.gr")
# Kernels of a few hundred microseconds, then as long a pause as the share wants.
LOAD = """
import sys, time, torch
busy = float(sys.argv[1])
kept = torch.zeros(int(sys.argv[2]) << 20, dtype=torch.uint8, device="cuda")
a = torch.randn(4096, 4096, device="cuda", dtype=torch.float16)
while True:
    began = time.perf_counter()
    a @ a
    torch.cuda.synchronize()
    spent = time.perf_counter() - began
    until = began + spent / busy
    while time.perf_counter() < until:
        pass
"""
PHASES = ((1.0, 4_000), (0.5, 20_000), (0.25, 40_000))  # share of the time, MiB held


def main(bundle: Path, keys: Path, torch_python: str) -> int:
    config = AgentConfig(bundle=bundle, trusted_keys=keys, port=0, cache=bundle.parent / "cache")
    agent = Agent.open(config, notifier=Notifier.from_environ({}))
    is_ready = threading.Event()
    thread = threading.Thread(target=agent.run, args=(is_ready.set,))
    thread.start()
    try:
        assert is_ready.wait(60.0)
        client = AgentClient(agent.url)
        worst = [_phase(client, torch_python, *phase) for phase in PHASES]
    finally:
        agent.request_stop()
        thread.join()
    return int(any(w[0] > MAX_MEMORY_PERCENT or w[1] > MAX_POINTS for w in worst))


def _phase(client: AgentClient, torch_python: str, busy: float, held: int) -> tuple[float, float]:
    """Return the largest difference in memory, percent, and the mean of utilization, points."""
    load = subprocess.Popen([torch_python, "-c", LOAD, str(busy), str(held)])
    memory, use = [], []
    try:
        while _smi()["memory.used"] < held:
            time.sleep(0.5)
        time.sleep(SETTLE_S)
        for _ in range(ROUNDS):
            time.sleep(INTERVAL_S)
            theirs, ours = _smi(), _telemetry(client)
            used = ours["memory_used_bytes"] / 2**20
            memory.append(100 * abs(used - theirs["memory.used"]) / theirs["memory.used"])
            use.append(abs(ours["utilization_percent"] - theirs["utilization.gpu"]))
    finally:
        load.kill()
        load.wait()
    print(f"busy {busy:.0%}, {held} MiB: memory {max(memory):.3f} %, utilization {use} points")
    print(f"  nvidia-smi {theirs}")
    print(f"  telemetry {ours}", flush=True)
    return max(memory), statistics.mean(use)


def _smi() -> dict[str, float]:
    words = ["nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"]
    line = subprocess.run([*words, "-i", "0"], capture_output=True, check=True, text=True).stdout
    return dict(zip(FIELDS, map(float, line.split(",")), strict=True))


def _telemetry(client: AgentClient) -> dict[str, Any]:
    gpu: dict[str, Any] = json.loads(client.send("GET", "/telemetry").body)["machine"]["gpus"][0]
    return gpu


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
