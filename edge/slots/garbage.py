"""What in the slots' folder nobody names any more; what a slot names is never removed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge.errors import StorageError
from edge.manifest import MAX_MANIFEST_BYTES, Artifact
from edge.slots.filesystem import Filesystem
from edge.slots.layout import SLOT_NAMES, Layout
from edge.slots.state import SlotName, SlotsState, bundle_id


class UnreadableSlotError(StorageError):
    """The manifest in a slot is damaged, so nobody knows what it names, and nothing is removed."""


@dataclass(frozen=True, slots=True)
class _Named:
    sha256: str


@dataclass(frozen=True, slots=True)
class _Names:
    """As much of a manifest as any version of the kit writes, older ones and newer ones."""

    artifacts: tuple[_Named, ...]


def names_in(
    disk: Filesystem, layout: Layout, state: SlotsState, slots: Iterable[SlotName] = SLOT_NAMES
) -> frozenset[str]:
    """Return the digests that the bundles in slots name, whether their files are here or not.

    Raises UnreadableSlotError if a manifest is not the one that the state names.
    """
    found: set[str] = set()
    for slot in slots:
        bundle, candidate = state.bundle(slot), state.candidate
        if bundle is None:
            continue
        try:
            content = disk.read(layout.manifest(slot), max_bytes=MAX_MANIFEST_BYTES)
        except FileNotFoundError:
            content = b""
        if bundle_id(content) == bundle.id:
            try:
                names = msgspec.json.decode(content, type=_Names)
            except msgspec.MsgspecError as error:
                raise _unreadable(layout, slot) from error
            found.update(artifact.sha256 for artifact in names.artifacts)
        elif candidate is None or (candidate.slot, candidate.phase) != (slot, "fetching"):
            raise _unreadable(layout, slot)
    return frozenset(found)


def reclaimable_bytes(
    disk: Filesystem, layout: Layout, state: SlotsState, wanted: Iterable[Artifact]
) -> int:
    """Return what becomes free when a bundle comes that names wanted, before its files do."""
    kept = {artifact.sha256 for artifact in wanted}
    if state.committed is not None:
        try:
            kept |= names_in(disk, layout, state, (state.committed,))
        except UnreadableSlotError:
            return 0
    paths = [layout.blob(name) for name in disk.names(layout.blobs) if name not in kept]
    kept_parts = {layout.part(digest).name for digest in kept}
    paths += [
        layout.incoming / name for name in disk.names(layout.incoming) if name not in kept_parts
    ]
    return sum(disk.size(path) or 0 for path in paths)


def unnamed_files(disk: Filesystem, layout: Layout, state: SlotsState) -> list[Path]:
    """Return every file that no slot of the state names; some may not be there."""
    kept = names_in(disk, layout, state)
    kept_parts: set[str] = set()
    if state.candidate is not None:
        coming = names_in(disk, layout, state, (state.candidate.slot,))
        kept_parts = {layout.part(digest).name for digest in coming}
    paths = [layout.blob(name) for name in disk.names(layout.blobs) if name not in kept]
    paths += [
        layout.incoming / name for name in disk.names(layout.incoming) if name not in kept_parts
    ]
    for slot in SLOT_NAMES:
        if state.bundle(slot) is None:
            paths += [layout.manifest(slot), layout.signature(slot)]
    return paths


def remove_unnamed(disk: Filesystem, layout: Layout, state: SlotsState) -> int:
    """Remove every file that no slot of the state names, and return how many bytes that were.

    The state must be durable: one that a power cut takes back may name what is removed here.
    """
    freed = 0
    for path in unnamed_files(disk, layout, state):
        size = disk.size(path)
        if size is not None:
            disk.remove(path)
            freed += size
    return freed


def _unreadable(layout: Layout, slot: SlotName) -> UnreadableSlotError:
    return UnreadableSlotError(
        f"{layout.manifest(slot)} is not the manifest that state.json names, so nothing is "
        "removed; install the bundle of that slot again"
    )
