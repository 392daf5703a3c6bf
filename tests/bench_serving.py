"""The agent beside other Python servers, on one machine, client and servers on the same cores.

    python -m tests.bench_serving FOLDER       peers in .peers, made by `make bench-serving`

Echo of 64 floats over the Open Inference Protocol, keep-alive, at 1, 8 and 64 connections, in
JSON and, where a server reads it, in binary; runs alternate between the servers, medians of RUNS.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from onnx import ModelProto, TensorProto, helper

from edge.agent_process import script
from edge.bench.load_client import Load, run_load_in_child
from edge.manifest import Batching
from edge.oip_client import infer_request
from edge.spec import Profile, ShapeRange
from tests.agents import unused_port
from tests.bundles import parts_of, write_bundle
from tests.models import model_from_nodes

REPOSITORY = Path(__file__).parents[1]
PEERS = REPOSITORY / ".peers"
FLOATS = 64
RUNS, SECONDS, CONNECTIONS = 5, 3.0, (1, 8, 64)
START_S = 60.0
PATH = "/v2/models/echo/infer"


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server under test. path: of inference. binary: the path that takes bytes, if one does."""

    name: str
    command: list[str]
    port: int
    path: str = PATH
    binary: str | None = None
    folder: Path = REPOSITORY
    environ: dict[str, str] | None = None


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    servers = all_servers(folder)
    results: dict[tuple[str, str, int], list[dict[str, float]]] = {}
    with contextlib.ExitStack() as stack:
        for server in servers:
            stack.enter_context(running(server, requests_for(server, "JSON")))
        for number in range(RUNS):
            for connections in CONNECTIONS:
                for server in servers:
                    for kind in ("JSON", "binary") if server.binary else ("JSON",):
                        figures = load(server, kind, connections)
                        results.setdefault((server.name, kind, connections), []).append(figures)
            print(f"run {number + 1} of {RUNS}", file=sys.stderr, flush=True)
    for (name, kind, connections), runs in sorted(results.items(), key=lambda item: item[0][2]):
        wrong = sum(int(run["wrong"]) for run in runs)
        rps, p50, p99 = (statistics.median(r[k] for r in runs) for k in ("rps", "p50_ms", "p99_ms"))
        print(
            f"{connections:>3} connections, {kind:<6} {name:<16} {rps:7.0f} requests/s, "
            f"p50 {p50:.2f} ms, p99 {p99:.2f} ms, {wrong} wrong",
            flush=True,
        )


def all_servers(folder: Path) -> list[Server]:
    """Return the agent and its peers, with everything they need on disk."""
    graph = folder / "echo.onnx"
    spec = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", FLOATS]) for n in "xy"]
    model = model_from_nodes([helper.make_node("Identity", ["x"], ["y"])], spec[:1], spec[1:])
    graph.write_bytes(model.SerializeToString())
    bundle = folder / "bundle"
    shutil.rmtree(bundle, ignore_errors=True)  # an older one may have another manifest
    write_echo_bundle(bundle, model)
    ports = [unused_port() for _ in range(4)]
    environ = {"EDGE_ECHO": str(graph)}
    mlserver = {"name": "echo", "implementation": "tests.peers.mlserver_echo.Echo"}
    return [
        Server(
            name="edge-agent",
            command=[script("edge-agent"), "serve", "--bundle", str(bundle), "--allow-unsigned",
                     "--trusted-keys", str(keys_folder(folder)), "--port", str(ports[0]),
                     "--queue-size", "512", "--intra-op-threads", "1", "--log-level", "error"],
            port=ports[0],
            binary=PATH,
        ),
        Server(
            name="FastAPI",
            command=[str(PEERS / "fastapi/bin/python"), "-m", "uvicorn", "--port", str(ports[1]),
                     "--log-level", "error", "tests.peers.fastapi_echo:app"],
            port=ports[1],
            binary="/raw",
            environ=environ,
        ),
        Server(
            name="Flask + waitress",
            command=[str(PEERS / "fastapi/bin/python"), "tests/peers/flask_echo.py", str(ports[2])],
            port=ports[2],
            environ=environ,
        ),
        Server(
            name="LitServe",
            command=[str(PEERS / "litserve/bin/python"), "tests/peers/litserve_echo.py",
                     str(ports[3])],
            port=ports[3],
        ),
        mlserver_server(folder / "mlserver", mlserver),
    ]  # fmt: skip


def mlserver_server(folder: Path, model: dict[str, object]) -> Server:
    """Return MLServer in one process; model: its settings."""
    folder.mkdir(exist_ok=True)
    port, grpc_port, metrics_port = (unused_port() for _ in range(3))
    settings = {
        "http_port": port,
        "grpc_port": grpc_port,
        "metrics_port": metrics_port,
        "parallel_workers": 0,
        "debug": False,
        "use_structured_logging": False,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    command = [str(PEERS / "mlserver/bin/mlserver"), "start", str(folder)]
    path = f"/v2/models/{model['name']}/infer"
    return Server(name="MLServer", command=command, port=port, path=path)


def write_echo_bundle(root: Path, graph: ModelProto) -> None:
    x = np.arange(2 * FLOATS, dtype=np.float32).reshape(2, FLOATS)
    ranges = {"x": ShapeRange(min=(1, FLOATS), opt=(1, FLOATS), max=(64, FLOATS))}
    manifest, files = parts_of(
        "echo", graph, {"x": x}, {"y": x}, profile=Profile(ranges=ranges), batching=Batching()
    )
    write_bundle(root, manifest, files, None)


def keys_folder(folder: Path) -> Path:
    (folder / "keys").mkdir(exist_ok=True)
    return folder / "keys"


def requests_for(server: Server, kind: str) -> bytes:
    """Return a whole request."""
    values = (np.arange(FLOATS, dtype=np.float32) + 1) * np.float32(0.0137)
    if kind == "binary" and server.binary == PATH:
        return infer_request("echo", {"x": values[None]}).whole()
    path, body = str(server.binary), values.tobytes()
    if kind == "JSON":
        tensor = {"name": "x", "shape": [1, FLOATS], "datatype": "FP32", "data": values.tolist()}
        path, body = PATH, json.dumps({"inputs": [tensor]}).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def load(server: Server, kind: str, connections: int) -> dict[str, float]:
    """Return what a client in a process of its own saw."""
    return load_with(server.port, requests_for(server, kind), connections, SECONDS)


def load_with(
    port: int, request: bytes, connections: int, seconds: float, *, tolerance: float = 0.0
) -> dict[str, float]:
    """Return what a client in a process of its own saw; wrong answers end otherwise than others."""
    load = Load(
        host="127.0.0.1", port=port, requests=(request,), seconds=seconds, connections=connections,
        tolerance=tolerance,
    )  # fmt: skip
    outcome = run_load_in_child(load)
    found = outcome.latency.get(200)
    return {
        "rps": outcome.in_time / seconds,
        "p50_ms": 0.0 if found is None else found.p50_ms or found.max_ms,
        "p99_ms": 0.0 if found is None else found.p99_ms or found.max_ms,
        "wrong": outcome.wrong + outcome.lost + outcome.unanswered,
    }


@contextlib.contextmanager
def running(server: Server, request: bytes) -> Iterator[None]:
    """Run a server until the end of the block, once it answers a request."""
    path = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(path), **(server.environ or {})}
    process = subprocess.Popen(
        server.command,
        cwd=server.folder,
        env=environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL if server.name != "edge-agent" else None,
        start_new_session=True,
    )
    try:
        wait_until_it_answers(server, request, process)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # children that a peer leaves behind
        process.wait()


def process_on(port: int) -> psutil.Process:
    """Return the process that listens on a port."""
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
            return psutil.Process(connection.pid)
    raise SystemExit(f"nobody listens on port {port}")


def wait_until_it_answers(server: Server, asked: bytes, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
                client.sendall(asked)
                if client.recv(12).endswith(b" 200"):
                    return
        except OSError:
            pass
        time.sleep(0.1)
    raise SystemExit(f"{server.name} does not answer on port {server.port}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
