"""What HTTP costs a small network: the CNN of the quickstart, beside a bare session.

    python -m tests.bench_images FOLDER      of `edge-kit quickstart --out FOLDER`

Requests of 32 images from one and more connections against runs of 32 in a loop, with the processor
time that the agent took for each; then one image from one connection against one run. Binary
tensors; client, agent and loop have the same cores, and turns alternate.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import numpy as np

from edge.bundle import open_bundle
from edge.oip_client import infer_request
from edge.ort_session import OrtSession
from edge.trust import trusted_keys_in
from tests.bench_batching import THREADS, agent_server
from tests.bench_serving import load_with, process_on, running

RUNS, SECONDS = 5, 3.0
ROWS, CONNECTIONS = 32, (1, 2, 4)


def main(folder: Path) -> None:
    root, keys = folder / "bundle", folder / "keys"
    bundle = open_bundle(root, trusted_keys_in(keys))
    model = bundle.manifest.models[0]
    variant = next(v for v in model.variants if v.id == model.preferences[0].variant)
    session = OrtSession.open(
        bundle.path(variant.files[0]), inputs=model.inputs, outputs=model.outputs,
        profile=model.profile, intra_op_threads=THREADS,
    )  # fmt: skip
    name, row = model.inputs[0].name, model.inputs[0].shape[1:]
    images = np.random.default_rng(0).normal(size=(ROWS, *map(int, row))).astype(np.float32)
    server = agent_server(root, keys)
    many = infer_request(model.name, {name: images}).whole()
    single = infer_request(model.name, {name: images[:1]}).whole()
    bare: dict[int, list[float]] = {1: [], ROWS: []}
    served: dict[tuple[int, int], list[dict[str, float]]] = {}
    with running(server, single):
        agent = process_on(server.port)
        for _ in range(RUNS):
            for rows, seconds in bare.items():
                seconds.append(seconds_a_run(session, {name: images[:rows]}))
            for rows, count in ((1, 1), *((ROWS, count) for count in CONNECTIONS)):
                before = sum(agent.cpu_times()[:2])
                request = single if rows == 1 else many
                figures = load_with(server.port, request, count, SECONDS, tolerance=0.02)
                used = sum(agent.cpu_times()[:2]) - before
                figures["cpu_us"] = 1e6 * used / (SECONDS * figures["rps"])
                served.setdefault((rows, count), []).append(figures)
    alone = {rows: statistics.median(seconds) for rows, seconds in bare.items()}
    for rows, seconds in alone.items():
        print(f"{variant.id}, bare session, {rows:>2} images: {1e3 * seconds:.3f} ms a run")
    for (rows, count), runs in served.items():
        rps, p50, p99, cpu = (
            statistics.median(run[key] for run in runs)
            for key in ("rps", "p50_ms", "p99_ms", "cpu_us")
        )
        print(
            f"agent, {rows:>2} images a request, {count} connections: {rps:.0f} requests/s "
            f"({rps * alone[rows]:.2f} of the bare loop), p50 {p50:.2f} ms "
            f"({p50 - 1e3 * alone[rows]:+.2f} ms), p99 {p99:.2f} ms, {cpu:.0f} us of processor "
            f"time a request, {sum(int(run['wrong']) for run in runs)} wrong"
        )


def seconds_a_run(session: OrtSession, feeds: dict[str, np.ndarray]) -> float:
    """Return the median time of a run."""
    seconds = []
    end = time.perf_counter() + SECONDS / 2
    while (begun := time.perf_counter()) < end:
        session.run(feeds)
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
