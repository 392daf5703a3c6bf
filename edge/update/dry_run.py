"""Where a pass works: on the device itself, or so that nothing of it changes."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edge.files import storage_errors
from edge.slots.store import Store
from edge.update.status import CHANNEL_FOLDER


@dataclass(frozen=True, slots=True, kw_only=True)
class Workplace:
    """The store, and the folder where what is known of the channel lies."""

    store: Store
    folder: Path


@contextlib.contextmanager
def real_workplace(root: Path) -> Iterator[Workplace]:
    """Yield the device's own, for nobody else meanwhile."""
    store, folder = Store.open(root), root / CHANNEL_FOLDER
    with storage_errors("create", folder):
        folder.mkdir(exist_ok=True)
    with store.changing("update from the channel"):
        yield Workplace(store=store, folder=folder)


@contextlib.contextmanager
def dry_workplace(root: Path) -> Iterator[Workplace]:
    """Yield the store to be looked at, and a copy of the folder that is dropped in the end."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / CHANNEL_FOLDER
        with storage_errors("copy", root / CHANNEL_FOLDER):
            if (root / CHANNEL_FOLDER).is_dir():
                shutil.copytree(root / CHANNEL_FOLDER, folder, symlinks=True)
            else:
                folder.mkdir()
        yield Workplace(store=Store.seen(root), folder=folder)
