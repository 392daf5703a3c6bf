"""Files of a release, from the channel into the store: only what is missing, cut or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from edge.errors import BundleError, ChannelError, FreshnessError
from edge.manifest import Artifact
from edge.slots.store import Store
from edge.update.channel import blob_target, stored_path
from edge.update.origin import Origin

# A transfer that is cut goes on at once if this much came; else the next pass goes on.
WORTH_BYTES = 64 << 10


class Transfer:
    """Brings files into a store. received_bytes: of bodies, whether they were good or not."""

    def __init__(self, store: Store, origin: Origin) -> None:
        self.received_bytes = 0
        self._store, self._origin = store, origin

    def bring(self, artifact: Artifact) -> None:
        """Fetch one file; raises FreshnessError if it cannot be had now, BundleError if it is bad.

        What came is kept in both cases, unless it was bad.
        """
        best = self._store.received_bytes(artifact)
        is_resumed = best > 0
        while True:
            try:
                self._try(artifact)
            except (FreshnessError, BundleError) as error:
                kept = self._store.received_bytes(artifact)
                if kept >= best + WORTH_BYTES:
                    best = kept
                    continue
                if isinstance(error, BundleError) and kept == 0 and is_resumed:
                    is_resumed, best = False, 0  # perhaps what lay here was bad
                    continue
                if isinstance(error, BundleError) and kept > 0:
                    raise FreshnessError(f"{error}; what came is kept") from error
                raise
            else:
                return

    def _try(self, artifact: Artifact) -> None:
        path = stored_path(blob_target(artifact.sha256), artifact.sha256)
        offset = self._store.received_bytes(artifact)
        if offset == artifact.size > 0:  # all came, and then the power went
            self._store.receive(artifact, (), offset=offset)
            return
        body = self._origin.open(path, offset=offset)
        if body is None:
            raise FreshnessError(f"the channel is incomplete: it has no {path}; try again later")
        chunks = self._counted(body.chunks, artifact.size - body.offset, artifact.path)
        self._store.receive(artifact, chunks, offset=body.offset)

    def _counted(self, chunks: Iterator[bytes], left: int, name: str) -> Iterator[bytes]:
        for chunk in chunks:
            self.received_bytes += len(chunk)
            left -= len(chunk)
            if left < 0:
                raise ChannelError(f"{name} is longer than the manifest says; the server is wrong")
            yield chunk


def bring_all(
    transfer: Transfer, artifacts: tuple[Artifact, ...], say: Callable[[str], None]
) -> None:
    """Fetch files in the order of their size, smallest first, and tell about each."""
    left = sum(artifact.size for artifact in artifacts)
    for artifact in sorted(artifacts, key=lambda a: (a.size, a.path)):
        say(f"fetch: {artifact.path}, {artifact.size / 1e6:.3f} MB of {left / 1e6:.3f} MB to go")
        transfer.bring(artifact)
        left -= artifact.size
