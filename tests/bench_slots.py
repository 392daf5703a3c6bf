"""Digest verification of a bundle beside raw sha256 over all cores, on files that are cached.

python -m tests.bench_slots FOLDER [MEGABYTES]
"""

from __future__ import annotations

import hashlib
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edge.manifest import Artifact
from edge.slots.digests import altered
from edge.slots.filesystem import OsFilesystem
from edge.slots.layout import Layout

ROUNDS = 9
# Sizes of a bundle's files as shares of it: weights, engines, graphs, golden tensors.
SHARES = (0.5, 0.2, 0.1, 0.1, *[0.1 / 32] * 32)


def write_files(layout: Layout, size: int) -> tuple[Artifact, ...]:
    layout.blobs.mkdir(parents=True)
    artifacts = []
    for number, share in enumerate(SHARES):
        content = os.urandom(int(size * share))
        digest = hashlib.sha256(content).hexdigest()
        layout.blob(digest).write_bytes(content)
        artifacts.append(Artifact(path=str(number), size=len(content), sha256=digest))
    return tuple(artifacts)


def raw(buffers: list[bytearray]) -> None:
    """Digest as many bytes in memory, in equal parts, one for each core: the most there is."""
    with ThreadPoolExecutor(len(buffers)) as pool:
        list(pool.map(hashlib.sha256, buffers))


def seconds(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def main(folder: Path, megabytes: int) -> None:
    size, cores = megabytes << 20, os.cpu_count() or 1
    layout = Layout(folder / "edge")
    artifacts = write_files(layout, size)
    total = sum(artifact.size for artifact in artifacts)
    buffers = [bytearray(os.urandom(total // cores)) for _ in range(cores)]
    disk = OsFilesystem()
    assert altered(disk, layout, artifacts) == ()
    # In turns, so that both meet the same machine.
    rounds = [
        (seconds(lambda: altered(disk, layout, artifacts)), seconds(lambda: raw(buffers)))
        for _ in range(ROUNDS)
    ]
    verify_s, raw_s = (min(times) for times in zip(*rounds, strict=True))
    ratio = statistics.median(raw_s / verify_s for verify_s, raw_s in rounds)
    print(f"{total >> 20} MiB in {len(artifacts)} files, {cores} cores, {ROUNDS} rounds")
    print(f"raw sha256 of memory   {total / raw_s / 1e6:8.0f} MB/s at best")
    print(f"verification of files  {total / verify_s / 1e6:8.0f} MB/s at best")
    print(f"median of the rounds' ratios {ratio:.2f}x")
    shutil.rmtree(layout.root)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1024)
