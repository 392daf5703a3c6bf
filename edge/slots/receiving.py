"""A file on its way into the store: kept when it is cut off, named only when it is right."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

from edge.errors import BundleError
from edge.files import storage_errors
from edge.manifest import Artifact
from edge.slots.filesystem import Filesystem
from edge.slots.layout import BLOB_MODE, Layout

LOOK_EVERY_BYTES = 8 << 20


def receive_file(
    disk: Filesystem,
    layout: Layout,
    artifact: Artifact,
    chunks: Iterable[bytes],
    *,
    offset: int,
    look: Callable[[bool], None],
) -> None:
    """Append chunks to the first offset bytes of what has arrived; see `store.Store.receive`.

    look: called before every write, with True when it must look now; may raise.
    """
    part = layout.part(artifact.sha256)
    with storage_errors("write", part):
        digest = _digest_of_start(disk, part, offset)
        file = disk.append_to(part, offset=offset)
    size = looked = offset
    is_whole = False
    try:
        look(True)
        for chunk in chunks:
            size += len(chunk)
            if size > artifact.size:
                break
            must = size - looked >= LOOK_EVERY_BYTES
            looked = size if must else looked
            look(must)
            with storage_errors("write", part):
                file.write(chunk)
            digest.update(chunk)
        if size < artifact.size:
            raise BundleError(
                f"{artifact.path}: only {size} of {artifact.size} bytes arrived; try again"
            )
        is_whole = size == artifact.size and digest.hexdigest() == artifact.sha256
        if is_whole:
            with storage_errors("write", part):
                file.sync(BLOB_MODE)
    finally:
        with storage_errors("write", part):
            file.close()
    with storage_errors("write", part):
        if not is_whole:
            disk.remove(part)
            raise BundleError(f"{artifact.path}: content does not match its digest; fetch it again")
        disk.rename(part, layout.blob(artifact.sha256))
        disk.sync_directory(layout.blobs)


def _digest_of_start(disk: Filesystem, part: Path, size: int) -> hashlib._Hash:
    if size > (disk.size(part) or 0):
        raise ValueError(f"{part} does not reach to {size}; ask received_bytes")
    digest, left = hashlib.sha256(), size
    for chunk in disk.chunks(part) if size else ():
        digest.update(chunk[:left])
        left -= min(left, len(chunk))
        if left == 0:
            break
    return digest
