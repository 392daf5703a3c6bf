"""Processes that change the slots are killed with SIGKILL, at random times, again and again.

The disk is a real one, and so is what is left behind: the next process goes on with it.
"""

from __future__ import annotations

import os
import random
import select
import shutil
import signal
import statistics
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from edge.bundle import open_bundle
from edge.slots.installing import Wish
from edge.slots.installing import install as bring
from edge.slots.state import bundle_id
from edge.slots.store import Store
from tests.edge.slots.crash_states import fetch_from
from tests.edge.slots.slot_bundles import CPU, TRUSTED, Packed, packed

SEED = 7
KILLS, QUICK_KILLS = 1000, 20
MIN_OF_EACH = 100
MEASURED = 5
FILES = 6
DEADLINE_S = 60.0

Change = Callable[[Store], None]


class Field:
    """A store on a real disk, and what is done to it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.root = folder / "edge"
        self.bundles = [self._packed(folder / name, name) for name in ("old", "new")]
        self.store = self.opened()
        self.install(self.bundles[0])(self.store)
        self.took_s: dict[str, list[float]] = {name: [] for name in OPERATIONS}
        self.kills: Counter[str] = Counter()

    def opened(self) -> Store:
        return Store.open(self.root, min_free_bytes=0, workers=1)

    def served(self) -> Packed:
        state = self.store.state
        assert state.served is not None
        return next(bundle for bundle in self.bundles if bundle.id == state.served.id)

    def other(self) -> Packed:
        return next(bundle for bundle in self.bundles if bundle != self.served())

    def install(self, bundle: Packed) -> Change:
        def change(store: Store) -> None:
            self.begin(bundle)(store)
            with store.changing("install"):
                if store.state.coming is not None:
                    store.commit(bundle.id)
                store.clean()

        return change

    def begin(self, bundle: Packed) -> Change:
        """Return what brings a bundle to its trial, whatever was under way."""
        wish = Wish(
            manifest=bundle.manifest, signature=bundle.signature, keys=TRUSTED, target=CPU,
            again=True,
        )  # fmt: skip

        def change(store: Store) -> None:
            coming = store.state.coming
            if coming is not None and store.state.served == coming:
                store.roll_back("another is wanted")
            with store.changing("install"):
                bring(store, wish, fetch_from(bundle))
                if store.state.coming is not None:
                    store.begin_trial()

        return change

    def operation(self, name: str) -> tuple[Change, set[str]]:
        """Prepare an operation; return it, and the ids that may be served while it runs."""
        before, other = self.served(), self.other()
        if name == "install":
            return self.install(other), {before.id, other.id}
        if name == "trial fails":
            self.install(before)(self.store)
            self.begin(other)(self.store)
            return self._failing(other), {before.id, other.id}
        self.install(before)(self.store)
        self.install(other)(self.store)
        if name == "rollback":
            return _roll_back, {before.id, other.id}
        self.store.roll_back("by hand")
        for number in range(FILES):
            (self.root / "blobs/sha256" / f"{number:064x}").write_bytes(b"stray")
        return _clean, {before.id}

    def cut(self, name: str) -> None:
        """Run an operation in a process, kill that at some moment, and look at what is there."""
        change, allowed = self.operation(name)
        if self._killed(change, name):
            self.kills[name] += 1
        state = self.store.state
        assert state.served is not None
        assert state.served.id in allowed
        for slot, bundle in (("a", state.a), ("b", state.b)):
            coming = state.candidate
            if bundle is None or (coming and (coming.slot, coming.phase) == (slot, "fetching")):
                continue
            folder = self.store.slot_path("a" if slot == "a" else "b")
            opened = open_bundle(folder, TRUSTED, is_slot=True)
            assert not opened.absent
            assert bundle_id((folder / "manifest.json").read_bytes()) == bundle.id

    def _failing(self, bundle: Packed) -> Change:
        def change(store: Store) -> None:
            with store.changing("gate"):
                store.fail(bundle.id, "too slow")
                store.clean()

        return change

    def _killed(self, change: Change, name: str) -> bool:
        """Return whether the process was killed before it was done."""
        done, tell = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.close(done)
                os.write(tell, b"begun")
                change(self.opened())
                status = 0
            except BaseException:  # noqa: BLE001 - nothing of the test's process may run here
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(tell)
        assert os.read(done, 5) == b"begun"
        begun = time.monotonic()
        took_s = self.took_s[name]
        wait_s = DEADLINE_S  # until it is known how long it takes
        if len(took_s) >= MEASURED:
            wait_s = self.rng.uniform(0, 1.1 * statistics.median(took_s))
        select.select([done], [], [], wait_s)  # ends when the process does
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        os.close(done)
        if os.WIFSIGNALED(status):
            return True
        assert os.WEXITSTATUS(status) == 0, f"{name} failed"
        if len(took_s) < MEASURED:
            took_s.append(time.monotonic() - begun)
        return False

    @staticmethod
    def _packed(folder: Path, name: str) -> Packed:
        rng = random.Random(name)
        files = {f"{name}{number}.bin": rng.randbytes(3000) for number in range(FILES)}
        return packed(folder, name, files=files)


def _roll_back(store: Store) -> None:
    store.roll_back("by hand")
    with store.changing("rollback"):
        store.clean()


def _clean(store: Store) -> None:
    with store.changing("clean"):
        store.clean()


OPERATIONS = ("install", "trial fails", "rollback", "garbage collection")


@pytest.fixture
def field(tmp_path: Path) -> Iterator[Field]:
    memory = Path("/dev/shm")
    folder = tmp_path
    if os.access(memory, os.W_OK):  # a kill loses nothing on any disk, and this one is quick
        folder = Path(tempfile.mkdtemp(dir=memory))
    try:
        yield Field(folder, SEED)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def kill_until(field: Field, kills: int, of_each: int) -> None:
    while field.kills.total() < kills or min(field.kills[name] for name in OPERATIONS) < of_each:
        field.cut(field.rng.choice(OPERATIONS))
    field.install(field.bundles[1])(field.store)
    assert field.served() == field.bundles[1]


def test_a_killed_process_leaves_a_whole_bundle(field: Field) -> None:
    kill_until(field, QUICK_KILLS, 1)


@pytest.mark.slow
def test_a_thousand_killed_processes_leave_a_whole_bundle(
    field: Field, capsys: pytest.CaptureFixture[str]
) -> None:
    kill_until(field, KILLS, MIN_OF_EACH)
    words = ", ".join(f"{count} during {name}" for name, count in sorted(field.kills.items()))
    with capsys.disabled():
        click.echo(f"\n  {field.kills.total():,} processes killed: {words}")
