"""Are the files in the slots what they should be? All cores read and digest at once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edge.manifest import Artifact
from edge.slots.filesystem import Filesystem
from edge.slots.layout import Layout


def digest_of(disk: Filesystem, path: Path) -> str:
    """Return the sha256 of a file in hex."""
    digest = hashlib.sha256()
    for chunk in disk.chunks(path):
        digest.update(chunk)
    return digest.hexdigest()


def altered(
    disk: Filesystem,
    layout: Layout,
    artifacts: Iterable[Artifact],
    *,
    workers: int | None = None,
) -> tuple[Artifact, ...]:
    """Return those whose file is missing or is not what its digest says; raises OSError."""

    def is_altered(artifact: Artifact) -> bool:
        path = layout.blob(artifact.sha256)
        if disk.size(path) != artifact.size:
            return True
        return digest_of(disk, path) != artifact.sha256

    # The largest first: a core that begins with one last would keep the others waiting.
    ordered = sorted(artifacts, key=lambda artifact: -artifact.size)
    threads = min(len(ordered), workers or os.cpu_count() or 1)
    if threads <= 1:
        return tuple(filter(is_altered, ordered))
    with ThreadPoolExecutor(threads, thread_name_prefix="digest") as pool:
        verdicts = pool.map(is_altered, ordered)
        return tuple(a for a, verdict in zip(ordered, verdicts, strict=True) if verdict)
