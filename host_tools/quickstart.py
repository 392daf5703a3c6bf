"""The whole way in one command: train, export, calibrate, pack, serve, ask, compare.

Every step after the training is one of the commands a user types, printed before it runs.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import socket
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

from edge.agent_process import LOG_NAME, agent_process, script
from edge.bundle import MANIFEST_NAME
from edge.errors import EdgeError, UsageError
from edge.files import read_capped, storage_errors
from edge.manifest import MAX_MANIFEST_BYTES, Manifest
from edge.manifest_reading import manifest_from_bytes
from host_tools.client import Score
from host_tools.digits import STATE_FILE, load_digits_split, train
from host_tools.progress import progress_bar

MODEL = "digits"
EPOCHS = 20
MARKER = ".edge-kit-quickstart"  # a folder with this file may be deleted by the next run
CONNECTIONS = 4
PROFILE = "image=1x1x32x32:8x1x32x32:32x1x32x32"
SERVE_FLAGS = ("--bundle", "bundle", "--trusted-keys", "keys")


class QuickstartError(EdgeError):
    """A step of the quickstart failed; its own message is above this one."""

    code = "quickstart"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table: a variant as it was served over HTTP."""

    variant: str
    size_bytes: int
    rss_bytes: int
    score: Score


def run_quickstart(folder: Path, *, keep: bool, port: int, console: Console) -> None:
    """Run every step in folder, which is made anew; print the table; with keep, go on serving.

    Raises QuickstartError naming the step that failed.
    """
    folder = folder.resolve()
    if keep:
        _require_free(port)
    _make_empty(folder)
    _train(folder, console)
    _step(folder, console, "edge-kit", "export", "host_tools.digits:trained", "--shape", PROFILE,
          "--out", f"{MODEL}.onnx")  # fmt: skip
    _step(folder, console, "edge-kit", "calibrate", f"{MODEL}.onnx", "--data", "train.npz",
          "--held-out", "heldout.npz", "--out", f"{MODEL}.int8.onnx")  # fmt: skip
    _step(folder, console, "edge-kit", "keygen", "release", "--out", "keys")
    _step(folder, console, "edge-kit", "pack", f"{MODEL}.onnx", "--int8", f"{MODEL}.int8.onnx",
          "--golden", "heldout.npz", "--name", MODEL, "--key", "keys/release.key",
          "--out", "bundle")  # fmt: skip
    _step(folder, console, "edge-kit", "verify", "bundle", "--trusted-keys", "keys")
    manifest = manifest_from_bytes(
        read_capped(folder / "bundle" / MANIFEST_NAME, max_bytes=MAX_MANIFEST_BYTES)
    )
    rows = [
        _serve_and_ask(folder, console, manifest, variant.id)
        for variant in manifest.models[0].variants
    ]
    _print_table(console, rows, manifest)
    if keep:
        _keep_serving(folder, console, port)


def _require_free(port: int) -> None:
    """Refuse a port in use before minutes of work."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise UsageError(f"port {port} is in use; give another one with --port") from error


def _make_empty(folder: Path) -> None:
    if folder.exists():
        if any(folder.iterdir()) and not (folder / MARKER).exists():
            raise UsageError(f"{folder} holds other files; give an empty folder with --out")
        shutil.rmtree(folder)
    with storage_errors("create", folder):
        folder.mkdir(parents=True)
        (folder / MARKER).touch()


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


def _step(folder: Path, console: Console, *words: str) -> None:
    _print_command(console, words)
    status = subprocess.run([script(words[0]), *words[1:]], cwd=folder, check=False).returncode
    if status != 0:
        raise QuickstartError(f"`{shlex.join(words)}` ended with exit code {status}; see above")


def _print_command(console: Console, words: Sequence[str]) -> None:
    console.print(f"\n$ {shlex.join(words)}", style="bold", highlight=False, soft_wrap=True)


def _serve_and_ask(folder: Path, console: Console, manifest: Manifest, variant: str) -> Row:
    model = manifest.models[0]
    flags = [*SERVE_FLAGS, "--variant", variant, "--port", "0"]
    _print_command(console, ["edge-agent", "serve", *flags])
    with agent_process(folder, flags) as (url, process):
        command = [sys.executable, "-m", "host_tools.client", url, model.name, "heldout.npz",
                   "--connections", str(CONNECTIONS)]  # fmt: skip
        result = subprocess.run(command, cwd=folder, check=False, stdout=subprocess.PIPE)
        if result.returncode != 0:
            raise QuickstartError(f"the client failed against {variant}; see above")
        score = msgspec.json.decode(result.stdout, type=Score)
        rss = psutil.Process(process.pid).memory_info().rss
    console.print(f"{score.requests} held-out scans sent to {url}, one a request")
    sizes = {artifact.path: artifact.size for artifact in manifest.artifacts}
    files = next(v.files for v in model.variants if v.id == variant)
    size = sum(sizes[path] for path in files)
    return Row(variant=variant, size_bytes=size, rss_bytes=rss, score=score)


def _keep_serving(folder: Path, console: Console, port: int) -> None:
    flags = [*SERVE_FLAGS, "--port", str(port)]
    _print_command(console, ["edge-agent", "serve", *flags])
    with agent_process(folder, flags) as (url, process):
        console.print(f"\nserving at {url} until Ctrl-C; in another terminal:", style="bold")
        request = folder / "request.json"
        image = np.load(folder / "heldout.npz")["image"][:1]
        tensor = {"name": "image", "shape": list(image.shape), "datatype": "FP32"}
        request.write_text(json.dumps({"inputs": [{**tensor, "data": image.ravel().tolist()}]}))
        for line in (
            f"curl {url}/v2/models/{MODEL}",
            f"curl --data-binary @{request} {url}/v2/models/{MODEL}/infer",
            f"curl {url}/telemetry",
        ):
            console.print(f"  {line}", highlight=False, soft_wrap=True)
        with contextlib.suppress(KeyboardInterrupt):
            status = process.wait()
            raise QuickstartError(f"the agent ended with {status}; {folder}/{LOG_NAME} says why")


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
