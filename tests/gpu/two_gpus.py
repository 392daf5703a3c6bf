"""One agent on one GPU and on two: throughput, the same answers, and the loss of a GPU under load.

python -m tests.gpu.two_gpus FOLDER MODEL BUNDLE_FOLDER PRECISION

Each GPU has a process of its own; the second is killed in the middle of a load.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil

from edge.config import AgentConfig
from edge.http_client import AgentClient
from edge.oip_client import infer, infer_request
from edge.serve import SWITCH_INTERVAL_S
from tests.agents import running_agent
from tests.gpu.serve_load import loaded
from tests.gpu.shapes import MODELS

ROWS, CONNECTIONS, CLIENTS, SECONDS = (8, 32), 32, 4, 5.0


def main(folder: Path, name: str, where: Path, precision: str) -> None:
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    interface, arrays = MODELS[name], np.load(folder / f"{name}.npz")
    config = AgentConfig(
        bundle=where / "bundle", trusted_keys=where / "keys", cache=where / "cache", port=0,
        variant=precision, queue_size=512,
    )  # fmt: skip
    with running_agent(config) as agent:
        served = agent.serving.served[name]
        print(f"{len(served.worker.workers)} workers, {served.memory_bytes} bytes each", flush=True)
        for rows in ROWS:
            feeds = {s.name: np.ascontiguousarray(arrays[s.name][:rows]) for s in interface.inputs}
            request = infer_request(name, feeds).whole()
            loaded(agent.url, request, CONNECTIONS, CLIENTS, SECONDS / 2)  # warm-up
            tell("all GPUs", rows, loaded(agent.url, request, CONNECTIONS, CLIENTS, SECONDS))
        answers = [
            worker.infer(feeds, deadline=None).outputs[interface.outputs[0].name]
            for worker in served.worker.workers
        ]
        same = all(np.array_equal(answers[0], answer) for answer in answers)
        print(f"every worker gives the same bytes: {same}", flush=True)
        if len(served.worker.workers) == 1:
            return
        timer = threading.Timer(SECONDS / 2, lose)
        timer.start()
        tell(
            "one is killed halfway", rows, loaded(agent.url, request, CONNECTIONS, CLIENTS, SECONDS)
        )
        timer.join()
        tell("after that", rows, loaded(agent.url, request, CONNECTIONS, CLIENTS, SECONDS))
        with urllib.request.urlopen(f"{agent.url}/telemetry") as response:
            model = json.load(response)["models"][0]
        print(f"workers {model['workers']}, requests {model['requests']}", flush=True)
        with closing(AgentClient(agent.url)) as client:
            again = infer(client, name, feeds)[interface.outputs[0].name]
        error = np.abs(again - answers[0]).max() / np.abs(answers[0]).max()
        print(f"the answer afterwards differs from the one before by {error:.1e}", flush=True)


def tell(what: str, rows: int, seen: tuple[dict[str, float], list[int]]) -> None:
    figures, busy = seen
    print(
        f"{what}, {rows} rows a request: {figures['rps']:.0f} requests/s, "
        f"{rows * figures['rps']:.0f} rows/s, p50 "
        f"{figures['p50_ms']:.2f} ms, p99 {figures['p99_ms']:.2f} ms, {figures['requests']:.0f} "
        f"requests, {figures['failed']:.0f} failed or wrong, GPUs {busy} % busy",
        flush=True,
    )


def lose() -> None:
    """Kill the process of the second GPU."""
    children = [
        child
        for child in psutil.Process().children()
        if "edge.session_child" in " ".join(child.cmdline())
    ]
    os.kill(max(child.pid for child in children), signal.SIGKILL)
    print("the process of GPU 1 is killed now", flush=True)


if __name__ == "__main__":
    if "CUDA_VISIBLE_DEVICES" not in os.environ:
        one = {**os.environ, "CUDA_VISIBLE_DEVICES": "0"}
        subprocess.run([sys.executable, "-m", "tests.gpu.two_gpus", *sys.argv[1:]], env=one)
        os.environ["CUDA_VISIBLE_DEVICES"] = "0,1"
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4])
