"""Cuts the power after every call of an operation, and looks at what every such disk holds.

After each call that changes something the states are: as is (the process was killed), all that was
not synced lost, random subsets of it lost, and the last write torn at each of its sectors. In each
of them a store opens, what it serves is whole, and an installation leads to the new bundle.
"""

from __future__ import annotations

import functools
import hashlib
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

from edge.bundle import open_bundle
from edge.manifest import Artifact
from edge.manifest_reading import manifest_from_bytes
from edge.slots.installing import Wish
from edge.slots.installing import install as bring
from edge.slots.needs import artifacts_for
from edge.slots.state import SlotBundle, SlotsState, bundle_id
from edge.slots.store import Store
from edge.trust import verify
from tests.edge.slots.simulated_disk import SECTOR_BYTES, SimulatedDisk, Tree, Write, random_cut
from tests.edge.slots.slot_bundles import CPU, TRUSTED, Packed

ROOT = Path("/edge")
Operation = Callable[[SimulatedDisk], None]


def open_store(disk: SimulatedDisk) -> Store:
    """Return the store on a simulated disk; one thread, so that its calls have an order."""
    return Store.open(ROOT, filesystem=disk, min_free_bytes=0, workers=1, clock=lambda: 0.0)


def fetch_from(bundle: Packed) -> Callable[[Artifact, int], Iterator[bytes]]:
    """Return what gives the files of a bundle, in pieces of three sectors."""

    def fetch(artifact: Artifact, offset: int) -> Iterator[bytes]:
        content = bundle.blobs[artifact.sha256]
        for at in range(offset, len(content), 3 * SECTOR_BYTES):
            yield content[at : at + 3 * SECTOR_BYTES]

    return fetch


def stage(store: Store, bundle: Packed, *, again: bool = False) -> None:
    """Bring a bundle into its slot, as `edge-agent install --stage-only` does."""
    wish = Wish(
        manifest=bundle.manifest, signature=bundle.signature, keys=TRUSTED, target=CPU, again=again
    )
    with store.changing("test"):
        bring(store, wish, fetch_from(bundle))


def install(disk: SimulatedDisk, bundle: Packed) -> None:
    """Bring a bundle in whatever happened to it here before, try it and commit it."""
    store = open_store(disk)
    state = store.state
    if state.serving != state.committed and state.served and state.served.id != bundle.id:
        store.roll_back("another bundle is wanted")
    stage(store, bundle, again=store.state.refusal(bundle.id) is not None)
    with store.changing("test"):
        if store.state.coming is not None:
            store.begin_trial()
            store.commit(bundle.id, {"checks": []})
        store.clean()


def is_whole(tree: Tree, slot: str, bundle: SlotBundle) -> bool:
    """Whether a slot holds a bundle with its signature and every file that the device needs."""
    manifest = tree.get(f"{ROOT}/slots/{slot}/manifest.json")
    signature = tree.get(f"{ROOT}/slots/{slot}/manifest.sig")
    if not isinstance(manifest, bytes) or not isinstance(signature, bytes):
        return False
    if bundle_id(manifest) != bundle.id or tree.get(f"{ROOT}/slots/{slot}/blobs") != "../../blobs":
        return False
    _verify(manifest, signature)
    return all(
        _digest(tree.get(f"{ROOT}/blobs/sha256/{sha256}")) == sha256 for sha256 in _needed(manifest)
    )


def _named_in(tree: Tree, slot: str) -> tuple[str, ...]:
    manifest = tree.get(f"{ROOT}/slots/{slot}/manifest.json")
    return _needed(manifest) if isinstance(manifest, bytes) else ()


@functools.cache
def _verify(manifest: bytes, signature: bytes) -> None:
    verify(manifest, signature, TRUSTED)


@functools.cache
def _needed(manifest: bytes) -> tuple[str, ...]:
    return tuple(a.sha256 for a in artifacts_for(manifest_from_bytes(manifest), CPU))


@functools.cache
def _digest(content: object) -> str | None:
    return hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else None


@dataclass(kw_only=True)
class Counts:
    """How much was looked at."""

    operations: int = 0
    calls: int = 0
    as_is: int = 0
    all_lost: int = 0
    some_lost: int = 0
    torn: int = 0
    distinct: int = 0

    def add(self, other: Counts) -> None:
        for count in fields(self):
            setattr(self, count.name, getattr(self, count.name) + getattr(other, count.name))

    @property
    def states(self) -> int:
        return self.as_is + self.all_lost + self.some_lost + self.torn

    def __str__(self) -> str:
        return (
            f"{self.states:,} crash states ({self.as_is:,} as is, {self.all_lost:,} all unsynced "
            f"lost, {self.some_lost:,} random subsets lost, {self.torn:,} last write torn; "
            f"{self.distinct:,} distinct) after {self.calls:,} calls of {self.operations} "
            "operations"
        )


@dataclass(kw_only=True)
class Judge:
    """Looks at crash states. allowed: ids of what may be served, None for nothing.

    folder: of a real disk, where the agent's own `open_bundle` opens what is served.
    """

    allowed: frozenset[str | None]
    wanted: Packed
    subsets: int
    rng: random.Random
    folder: Path | None = None
    counts: Counts = field(default_factory=Counts)
    seen: set[int] = field(default_factory=set)

    def run(self, tree: Tree, operation: Operation) -> None:
        """Run an operation on a disk with this content, and judge the states after each call."""
        self.run_on(SimulatedDisk(tree), operation)

    def run_on(self, disk: SimulatedDisk, operation: Operation) -> None:
        """Run an operation on a disk, and judge the states after each call."""
        before = disk.calls
        disk.after_change = lambda name: self.judge_all(disk)
        operation(disk)
        self.counts.operations += 1
        self.counts.calls += disk.calls - before

    def judge_all(self, disk: SimulatedDisk) -> None:
        counts = self.counts
        self.judge(disk.as_is())
        counts.as_is += 1
        self.judge(disk.after_cut(lambda _: False))
        counts.all_lost += 1
        for _ in range(self.subsets):
            self.judge(disk.after_cut(*random_cut(self.rng)))
            counts.some_lost += 1
        for tree in torn_trees(disk):
            self.judge(tree)
            counts.torn += 1

    def judge(self, tree: Tree) -> None:
        key = hash(frozenset(tree.items()))
        if key in self.seen:
            return
        self.seen.add(key)
        self.counts.distinct += 1
        state = self._judge_served(tree)
        after = SimulatedDisk(tree)
        install(after, self.wanted)
        end = after.after_cut(lambda _: False)
        final = open_store(SimulatedDisk(end)).state
        assert final.served is not None, f"nothing is served at the end, from {state}"
        assert final.served.id == self.wanted.id
        assert is_whole(end, str(final.serving), final.served)
        left = after.as_is()
        assert not any(path.startswith(f"{ROOT}/incoming/") for path in left), "a partial is left"
        named = {digest for slot in ("a", "b") for digest in _named_in(left, slot)}
        blobs = {path.rpartition("/")[2] for path in left if path.startswith(f"{ROOT}/blobs/sha")}
        assert blobs - {"sha256"} == named, "files are left that no slot names"

    def _judge_served(self, tree: Tree) -> SlotsState:
        state = open_store(SimulatedDisk(tree)).state
        served = state.served
        assert (None if served is None else served.id) in self.allowed, f"serves {served}"
        # Not what is served alone: whatever a trial or a rollback may lead to must be whole too.
        for slot, bundle in (("a", state.a), ("b", state.b)):
            candidate = state.candidate
            is_coming = candidate is not None and candidate.slot == slot
            if bundle is not None and not (is_coming and candidate.phase == "fetching"):
                assert is_whole(tree, slot, bundle), f"slot {slot} is damaged: {state}"
        if self.folder is not None and state.serving is not None:
            root = self.folder / str(len(self.seen))
            write_tree(tree, root)
            opened = open_bundle(
                root / str(ROOT)[1:] / "slots" / state.serving, TRUSTED, is_slot=True
            )
            assert not opened.absent
            shutil.rmtree(root)
        return state


def write_tree(tree: Tree, root: Path) -> None:
    """Write a tree to a folder that does not exist yet."""
    root.mkdir()
    for name, content in sorted(tree.items()):
        path = root / name[1:]
        if content is None:
            path.mkdir()
        elif isinstance(content, str):
            path.symlink_to(content)
        else:
            path.write_bytes(content)


def torn_trees(disk: SimulatedDisk) -> Iterator[Tree]:
    """Yield the trees in which the last write reached the disk up to one of its sectors alone."""
    last = disk.last_write
    if last is None:
        return
    for end in range(len(last.content) // SECTOR_BYTES + 1):

        def sectors(write: Write, end: int = end) -> Callable[[int], bool]:
            return (lambda sector: sector < end) if write is last else (lambda sector: True)

        yield disk.after_cut(lambda _: True, sectors)
