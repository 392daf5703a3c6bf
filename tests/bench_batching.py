"""What the agent makes of a device: MiniLM served to 32 clients, beside a bare session loop.

    python -m tests.bench_batching BUNDLE KEYS       a bundle that tests.minilm packed

The loop runs the variant that the agent serves, with the same threads, at several batch sizes. Each
client sends one sentence of TOKENS tokens and waits for its answer. MLServer and LitServe, where
they are installed in .peers, batch the same graph and get the same requests, in JSON.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from edge.agent_process import script
from edge.bundle import open_bundle
from edge.oip_client import infer_request
from edge.ort_session import OrtSession
from edge.trust import trusted_keys_in
from tests.agents import unused_port
from tests.bench_serving import PEERS, Server, load_with, mlserver_server, running

MAX_BATCH, MAX_WAIT_S = 32, 0.005  # of the peers

TOKENS = 32
RUNS, SECONDS = 5, 6.0
BATCHES = (1, 4, 8, 16, 32)
CONNECTIONS = (1, 32)
THREADS = 2


@dataclass(frozen=True, kw_only=True)
class Load:
    """Requests to a server, and what came of them by the number of connections."""

    server: Server
    kind: str
    request: bytes
    runs: dict[int, list[dict[str, float]]] = field(
        default_factory=lambda: {count: [] for count in CONNECTIONS}
    )


def main(root: Path, keys: Path) -> None:
    bundle = open_bundle(root, trusted_keys_in(keys))
    model = bundle.manifest.models[0]
    variant = next(v for v in model.variants if v.id == model.preferences[0].variant)
    session = OrtSession.open(
        bundle.path(variant.files[0]), inputs=model.inputs, outputs=model.outputs,
        profile=model.profile, intra_op_threads=THREADS,
    )  # fmt: skip
    agent = agent_server(root, keys)
    graph = bundle.path(variant.files[0])
    loads = [Load(server=agent, kind="binary", request=sentence(model.name))]
    for server in (agent, *peers(root.parent, graph)):
        loads.append(Load(server=server, kind="JSON", request=sentence(model.name, binary=False)))
    bare: dict[int, list[float]] = {rows: [] for rows in BATCHES}
    with contextlib.ExitStack() as stack:
        for load in {load.server.name: load for load in loads}.values():
            stack.enter_context(running(load.server, load.request))
        for _ in range(RUNS):
            for rows, rates in bare.items():
                rates.append(rows_per_second(session, rows))
            for load in loads:
                for count, runs in load.runs.items():
                    runs.append(
                        load_with(load.server.port, load.request, count, SECONDS, tolerance=0.02)
                    )
    best = 0.0
    for rows, rates in bare.items():
        best = max(best, statistics.median(rates))
        print(f"bare session, batch {rows:>2}: {statistics.median(rates):6.1f} sentences/s")
    for load in loads:
        for count, runs in load.runs.items():
            rps, p50, p99 = (
                statistics.median(r[k] for r in runs) for k in ("rps", "p50_ms", "p99_ms")
            )
            wrong = sum(int(run["wrong"]) for run in runs)
            print(
                f"{load.server.name}, {load.kind}, {count:>2} connections: {rps:6.1f} sentences/s "
                f"({rps / best:.2f} of the best batch), p50 {p50:.1f} ms, p99 {p99:.1f} ms, "
                f"{wrong} wrong"
            )


def peers(folder: Path, graph: Path) -> list[Server]:
    """Return the servers beside ours that are installed."""
    settings: dict[str, object] = {
        "name": "minilm",
        "implementation": "tests.peers.mlserver_encoder.Encoder",
        "max_batch_size": MAX_BATCH,
        "max_batch_time": MAX_WAIT_S,
    }
    mlserver = mlserver_server(folder / "mlserver", settings)
    port = unused_port()
    litserve = Server(
        name="LitServe",
        command=[str(PEERS / "litserve/bin/python"), "tests/peers/litserve_encoder.py", str(port),
                 mlserver.path],
        port=port,
        path=mlserver.path,
    )  # fmt: skip
    environ = {"EDGE_GRAPH": str(graph)}
    found = (mlserver, litserve)
    return [
        replace(server, environ=environ) for server in found if Path(server.command[0]).exists()
    ]


def sentence(name: str, *, binary: bool = True) -> bytes:
    """Return a request for one sentence."""
    ids = np.random.default_rng(0).integers(1000, 20000, (1, TOKENS))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    return infer_request(name, feeds, binary=binary).whole()


def agent_server(root: Path, keys: Path) -> Server:
    """Return the agent on a bundle."""
    port = unused_port()
    command = [script("edge-agent"), "serve", "--bundle", str(root), "--trusted-keys", str(keys)]
    flags = ["--port", str(port), "--intra-op-threads", str(THREADS), "--log-level", "error"]
    return Server(name="edge-agent", command=[*command, *flags], port=port)


def rows_per_second(session: OrtSession, rows: int) -> float:
    """Return the rate of runs one after the other."""
    ids = np.random.default_rng(0).integers(1000, 20000, (rows, TOKENS))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    session.run(feeds)
    begun, runs = time.perf_counter(), 0
    while time.perf_counter() - begun < SECONDS / 4:
        session.run(feeds)
        runs += 1
    return rows * runs / (time.perf_counter() - begun)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
