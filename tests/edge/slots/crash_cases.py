"""The operations that are cut, and the disks that they begin with."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edge.errors import InstallCancelledError
from edge.slots.state import MAX_ATTEMPTS
from tests.edge.slots.crash_states import ROOT, Judge, Operation, install, open_store, stage
from tests.edge.slots.simulated_disk import SimulatedDisk, Tree
from tests.edge.slots.slot_bundles import CPU, TRUSTED, Packed, packed

SEED = 20261126


@dataclass(frozen=True, kw_only=True)
class Bundles:
    """Three versions that share a file, and have files of their own."""

    first: Packed
    old: Packed
    new: Packed


@dataclass(frozen=True, kw_only=True)
class Case:
    """An operation on a disk. serves: what may be served meanwhile, by name, None for nothing."""

    before: Callable[[Bundles], Tree]
    operation: Callable[[Bundles], Operation]
    serves: tuple[str | None, ...]


def make_bundles(folder: Path) -> Bundles:
    """Write three bundles to a folder."""
    rng = random.Random(SEED)
    shared = rng.randbytes(2500)

    def made(name: str) -> Packed:
        files = {"shared.bin": shared, f"{name}.bin": rng.randbytes(1800)}
        return packed(folder / name, name, files=files)

    return Bundles(first=made("first"), old=made("old"), new=made("new"))


def after(tree: Tree, *operations: Operation) -> Tree:
    """The tree that operations leave behind, when all is durable."""
    disk = SimulatedDisk(tree)
    for operation in operations:
        operation(disk)
    return SimulatedDisk(disk.as_is()).as_is()


def with_old(bundles: Bundles) -> Tree:
    return after({}, lambda disk: install(disk, bundles.old))


def with_first_and_old(bundles: Bundles) -> Tree:
    return after(
        {}, lambda disk: install(disk, bundles.first), lambda disk: install(disk, bundles.old)
    )


def with_new_staged(bundles: Bundles) -> Tree:
    return after(with_old(bundles), lambda disk: stage(open_store(disk), bundles.new))


def with_first_staged(bundles: Bundles) -> Tree:
    return after(with_old(bundles), lambda disk: stage(open_store(disk), bundles.first))


def with_new_on_trial(bundles: Bundles) -> Tree:
    return after(with_new_staged(bundles), lambda disk: open_store(disk).begin_trial())


def with_new_refused(bundles: Bundles) -> Tree:
    return after(with_new_on_trial(bundles), fail(bundles))


def with_garbage(bundles: Bundles) -> Tree:
    tree = after(with_new_on_trial(bundles), lambda disk: open_store(disk).roll_back("by hand"))
    tree[f"{ROOT}/blobs/sha256/{'0' * 64}"] = b"stray"
    tree[f"{ROOT}/incoming/{'0' * 64}.part"] = b"stray"
    return tree


def installing(bundles: Bundles) -> Operation:
    return lambda disk: install(disk, bundles.new)


def fail(bundles: Bundles) -> Operation:
    def operation(disk: SimulatedDisk) -> None:
        store = open_store(disk)
        with store.changing("test"):
            store.fail(bundles.new.id, "too slow", {"checks": ["p95"]})
            store.clean()

    return operation


def roll_back(bundles: Bundles) -> Operation:
    def operation(disk: SimulatedDisk) -> None:
        store = open_store(disk)
        store.roll_back("by hand")
        with store.changing("test"):
            store.clean()

    return operation


def start_too_often(bundles: Bundles) -> Operation:
    def operation(disk: SimulatedDisk) -> None:
        for _ in range(MAX_ATTEMPTS + 1):
            open_store(disk).count_start()

    return operation


def cancel(bundles: Bundles) -> Operation:
    def operation(disk: SimulatedDisk) -> None:
        store, new = open_store(disk), bundles.new
        with store.changing("test"):
            artifacts = store.prepare(new.manifest, new.signature, keys=TRUSTED, target=CPU)
            artifact = store.missing(artifacts)[0]
            store.receive(artifact, _cancelled_halfway(disk, new, artifact.sha256), offset=0)
            with pytest.raises(InstallCancelledError):
                store.receive(artifact, [], offset=0)
            store.clean()

    return operation


def _cancelled_halfway(disk: SimulatedDisk, bundle: Packed, digest: str) -> Iterator[bytes]:
    yield bundle.blobs[digest][:100]
    open_store(disk).roll_back("by hand")
    yield bundle.blobs[digest][100:]


def clean(bundles: Bundles) -> Operation:
    def operation(disk: SimulatedDisk) -> None:
        store = open_store(disk)
        with store.changing("test"):
            store.clean()

    return operation


CASES = {
    "install on an empty device": Case(
        before=lambda _: {}, operation=installing, serves=(None, "new")
    ),
    "install over a bundle": Case(before=with_old, operation=installing, serves=("old", "new")),
    "install over two bundles": Case(
        before=with_first_and_old, operation=installing, serves=("old", "new")
    ),
    "install over another that is staged": Case(
        before=with_first_staged, operation=installing, serves=("old", "new")
    ),
    "install one that is staged": Case(
        before=with_new_staged, operation=installing, serves=("old", "new")
    ),
    "install again what was refused": Case(
        before=with_new_refused, operation=installing, serves=("old", "new")
    ),
    "a rollback while files arrive": Case(before=with_old, operation=cancel, serves=("old",)),
    "a trial that fails": Case(before=with_new_on_trial, operation=fail, serves=("old", "new")),
    "a trial rolled back by hand": Case(
        before=with_new_on_trial, operation=roll_back, serves=("old", "new")
    ),
    "a trial that starts too often": Case(
        before=with_new_on_trial, operation=start_too_often, serves=("old", "new")
    ),
    "a rollback to the previous bundle": Case(
        before=with_first_and_old, operation=roll_back, serves=("old", "first")
    ),
    "garbage collection": Case(before=with_garbage, operation=clean, serves=("old",)),
}


def judge_of(case: Case, bundles: Bundles, *, subsets: int, folder: Path | None = None) -> Judge:
    """Return who judges the states of a case."""
    names = [None if name is None else getattr(bundles, name).id for name in case.serves]
    return Judge(
        allowed=frozenset(names),
        wanted=bundles.new,
        subsets=subsets,
        rng=random.Random(SEED),
        folder=folder,
    )
