"""The whole way in one command: train, export, calibrate, pack, serve, ask, compare.

Every step after the training is one of the commands a user types, printed before it runs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from edge.agent_process import agent_process
from edge.bundle import MANIFEST_NAME
from edge.files import read_capped
from edge.manifest import MAX_MANIFEST_BYTES, Manifest
from edge.manifest_reading import manifest_from_bytes
from host_tools.client import Score
from host_tools.digits import STATE_FILE, load_digits_split, train
from host_tools.progress import progress_bar
from host_tools.tour import SERVE_FLAGS, Tour, TourError, make_empty, require_free

MODEL = "digits"
EPOCHS = 20
MARKER = ".edge-kit-quickstart"  # a folder with this file may be deleted by the next run
CONNECTIONS = 4
PROFILE = "image=1x1x32x32:8x1x32x32:32x1x32x32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table: a variant as it was served over HTTP."""

    variant: str
    size_bytes: int
    rss_bytes: int
    score: Score


def run_quickstart(folder: Path, *, keep: bool, port: int, console: Console) -> None:
    """Run every step in folder, which is made anew; print the table; with keep, go on serving.

    Raises TourError naming the step that failed.
    """
    folder = folder.resolve()
    if keep:
        require_free(port)
    make_empty(folder, marker=MARKER)
    tour = Tour(folder, console)
    _train(folder, console)
    tour.step("edge-kit", "export", "host_tools.digits:trained", "--shape", PROFILE,
          "--out", f"{MODEL}.onnx")  # fmt: skip
    tour.step("edge-kit", "calibrate", f"{MODEL}.onnx", "--data", "train.npz",
          "--held-out", "heldout.npz", "--out", f"{MODEL}.int8.onnx")  # fmt: skip
    tour.step("edge-kit", "keygen", "release", "--out", "keys")
    tour.step("edge-kit", "pack", f"{MODEL}.onnx", "--int8", f"{MODEL}.int8.onnx",
          "--golden", "heldout.npz", "--name", MODEL, "--key", "keys/release.key",
          "--out", "bundle")  # fmt: skip
    tour.step("edge-kit", "verify", "bundle", "--trusted-keys", "keys")
    manifest = manifest_from_bytes(
        read_capped(folder / "bundle" / MANIFEST_NAME, max_bytes=MAX_MANIFEST_BYTES)
    )
    rows = [_serve_and_ask(tour, manifest, variant.id) for variant in manifest.models[0].variants]
    _print_table(console, rows, manifest)
    if keep:
        _keep_serving(tour, port)


def _train(folder: Path, console: Console) -> None:
    import torch

    training, held_out = load_digits_split()
    start = time.monotonic()
    with progress_bar() as progress:
        net = train(
            training, epochs=EPOCHS, tick=lambda epoch, _: progress("training", epoch, EPOCHS)
        )
    torch.save(net.state_dict(), folder / STATE_FILE)
    for name, split in (("train", training), ("heldout", held_out)):
        np.savez(folder / f"{name}.npz", image=split.images, labels=split.labels)
    console.print(
        f"trained a residual CNN on {len(training.labels):,} scans of handwritten digits in "
        f"{time.monotonic() - start:.0f} s; {len(held_out.labels)} are held out"
    )


def _serve_and_ask(tour: Tour, manifest: Manifest, variant: str) -> Row:
    model = manifest.models[0]
    flags = [*SERVE_FLAGS, "--variant", variant, "--port", "0"]
    tour.show(["edge-agent", "serve", *flags])
    with agent_process(tour.folder, flags) as (url, process):
        command = [sys.executable, "-m", "host_tools.client", url, model.name, "heldout.npz",
                   "--connections", str(CONNECTIONS)]  # fmt: skip
        result = subprocess.run(command, cwd=tour.folder, check=False, stdout=subprocess.PIPE)
        if result.returncode != 0:
            raise TourError(f"the client failed against {variant}; see above")
        score = msgspec.json.decode(result.stdout, type=Score)
        rss = psutil.Process(process.pid).memory_info().rss
    tour.console.print(f"{score.requests} held-out scans sent to {url}, one a request")
    sizes = {artifact.path: artifact.size for artifact in manifest.artifacts}
    files = next(v.files for v in model.variants if v.id == variant)
    size = sum(sizes[path] for path in files)
    return Row(variant=variant, size_bytes=size, rss_bytes=rss, score=score)


def _keep_serving(tour: Tour, port: int) -> None:
    request = tour.folder / "request.json"
    image = np.load(tour.folder / "heldout.npz")["image"][:1]
    tensor = {"name": "image", "shape": list(image.shape), "datatype": "FP32"}
    request.write_text(json.dumps({"inputs": [{**tensor, "data": image.ravel().tolist()}]}))
    tour.keep_serving(
        port,
        (
            f"curl {{url}}/v2/models/{MODEL}",
            f"curl --data-binary @{request} {{url}}/v2/models/{MODEL}/infer",
            "curl {url}/telemetry",
        ),
    )


def _print_table(console: Console, rows: Sequence[Row], manifest: Manifest) -> None:
    table = Table(title=f"{MODEL}, served over HTTP, one image a request", title_justify="left")
    table.add_column("variant")
    for heading in ("accuracy", "size", "p50", "p99", f"req/s ({CONNECTIONS})", "memory"):
        table.add_column(heading, justify="right")
    for row in rows:
        score = row.score
        table.add_row(
            row.variant,
            f"{score.accuracy_percent:.2f} %",
            f"{row.size_bytes / 1e3:.0f} kB",
            f"{score.p50_ms:.2f} ms",
            f"{score.p99_ms:.2f} ms",
            f"{score.requests_per_s:.0f}",
            f"{row.rss_bytes / 1e6:.0f} MB",
        )
    console.print()
    console.print(table)
    model = manifest.models[0]
    if model.accuracy is not None:
        share = model.accuracy.int8_mac_percent
        console.print(
            f"{share:.2f} % of the multiply-accumulates of {rows[-1].variant} run in integer "
            "kernels."
        )
    preference = model.preferences[0]
    if preference.variant == "ort-fp32":
        console.print("int8 is not faster than fp32 on this CPU, so the agent serves fp32 here.")
    console.print(f"Chosen by measurement: {preference.why}.")
    console.print(
        f"A GPU would add a TensorRT engine built from {MODEL}.int8.onnx, and leave the CPU free."
    )
