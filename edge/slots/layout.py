"""Where things lie below the root folder of the slots.

state.json              what is committed, and what is on trial; see `state`
lock, state.lock        one process installs at a time; one writes state.json at a time
blobs/sha256/<digest>   the files of both slots, by content
slots/a/, slots/b/      manifest.json and manifest.sig of one bundle, and a link to the blobs
incoming/<digest>.part  what has arrived of a file so far
reports/                why the last trials ended as they did
channel/                of the update channel
requests.capture        requests to judge trials by, if somebody put them there; see `gate`
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from edge.bundle import MANIFEST_NAME, SIGNATURE_NAME
from edge.errors import StorageError
from edge.files import storage_errors
from edge.slots.filesystem import Filesystem, OsFilesystem
from edge.slots.state import MAX_STATE_BYTES, SlotName, SlotsState, state_from_bytes

SLOT_NAMES: tuple[SlotName, ...] = get_args(SlotName)
BLOBS_LINK = "../../blobs"  # out of a slot
FILE_MODE = 0o644
BLOB_MODE = 0o444
_PART, _NEW = ".part", ".new"


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths below one root."""

    root: Path

    @property
    def state(self) -> Path:
        """The state file."""
        return self.root / "state.json"

    @property
    def blobs(self) -> Path:
        """The folder of the files that both slots share."""
        return self.root / "blobs" / "sha256"

    @property
    def incoming(self) -> Path:
        """The folder of files that have not arrived in full."""
        return self.root / "incoming"

    @property
    def reports(self) -> Path:
        """The folder of reports on trials."""
        return self.root / "reports"

    def slot(self, name: SlotName) -> Path:
        """Return the folder of a slot, which `open_bundle` takes."""
        return self.root / "slots" / name

    def manifest(self, name: SlotName) -> Path:
        """Return the manifest in a slot."""
        return self.slot(name) / MANIFEST_NAME

    def signature(self, name: SlotName) -> Path:
        """Return the signature in a slot."""
        return self.slot(name) / SIGNATURE_NAME

    def blob(self, sha256: str) -> Path:
        """Return the place of a file that arrived."""
        return self.blobs / sha256

    def part(self, sha256: str) -> Path:
        """Return the place of a file that is arriving."""
        return self.incoming / f"{sha256}{_PART}"


def state_in(root: Path, *, filesystem: Filesystem | None = None) -> SlotsState:
    """Return the state as it is on disk now; needs no lock, and no right to write.

    Raises StorageError if it cannot be read. A root without one is a device with nothing installed.
    """
    path = Layout(root).state
    disk = OsFilesystem() if filesystem is None else filesystem
    with storage_errors("read", path):
        try:
            content = disk.read(path, max_bytes=MAX_STATE_BYTES)
        except FileNotFoundError:
            return SlotsState()
    if len(content) > MAX_STATE_BYTES:
        raise StorageError(f"{path} is larger than the cap of {MAX_STATE_BYTES} bytes")
    return state_from_bytes(content)


def write_durably(disk: Filesystem, path: Path, content: bytes, *, mode: int = FILE_MODE) -> None:
    """Write a file so that a power cut leaves the old one or the new one, whole.

    One process at a time may write a path. When this returns, the new one is durable.
    """
    new = path.with_name(f"{path.name}{_NEW}")
    disk.remove(new)
    file = disk.append_to(new, offset=0)
    try:
        file.write(content)
        file.sync(mode)
    finally:
        file.close()
    disk.rename(new, path)
    disk.sync_directory(path.parent)


def make_layout(disk: Filesystem, layout: Layout) -> None:
    """Make the folders that are missing, durably."""
    root = layout.root
    for folder in (root, root / "blobs", layout.blobs, layout.incoming, layout.reports,
                   root / "slots", *map(layout.slot, SLOT_NAMES)):  # fmt: skip
        disk.make_directory(folder)
    for name in SLOT_NAMES:
        link = layout.slot(name) / "blobs"
        if disk.link_target(link) != BLOBS_LINK:
            disk.remove(link)
            disk.make_link(BLOBS_LINK, link)
        disk.sync_directory(layout.slot(name))
    for folder in (root / "slots", root / "blobs", root, root.absolute().parent):
        disk.sync_directory(folder)
