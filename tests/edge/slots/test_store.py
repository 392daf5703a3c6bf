from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edge.bundle import open_bundle
from edge.errors import (
    BundleError,
    InstallCancelledError,
    RefusedBundleError,
    SlotsBusyError,
    SlotsError,
    SpaceError,
    TrustError,
)
from edge.slots.layout import state_in
from edge.slots.store import Store
from edge.trust import sign
from tests.edge.slots.slot_bundles import CPU, KEY, TRUSTED, Packed, fill, packed, stage


@pytest.fixture
def old(tmp_path: Path) -> Packed:
    return packed(tmp_path / "old", "1")


@pytest.fixture
def new(tmp_path: Path) -> Packed:
    return packed(tmp_path / "new", "2")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(tmp_path / "root", min_free_bytes=0)
    with store.changing("test"):
        yield store


def commit(store: Store, bundle: Packed) -> None:
    stage(store, bundle)
    store.begin_trial()
    store.commit(bundle.id)


def served_version(store: Store) -> str:
    slot = store.state.serving
    assert slot is not None
    bundle = open_bundle(store.slot_path(slot), TRUSTED, is_slot=True)
    return bundle.manifest.version


@pytest.mark.parametrize("length", [201, 1001, 100_000])
def test_a_version_that_the_state_could_not_hold_is_refused_before_anything_is_written(
    store: Store, old: Packed, tmp_path: Path, length: int
) -> None:
    commit(store, old)
    head, tail = old.manifest.rsplit(b'"1"', 1)
    manifest = head + b'"%s"' % (b"x" * length) + tail
    signature = sign(manifest, KEY.private_pem, name="test key")
    long = replace(old, manifest=manifest, signature=signature)
    before = state_in(store.root)
    with pytest.raises(BundleError, match="200 are the most"):
        stage(store, long)
    assert state_in(store.root) == before
    assert served_version(store) == "1"


def test_a_committed_bundle_is_served_from_its_slot(store: Store, old: Packed, new: Packed) -> None:
    commit(store, old)
    assert served_version(store) == "1"
    stage(store, new)
    assert served_version(store) == "1"
    store.begin_trial()
    assert served_version(store) == "2"
    store.commit(new.id)
    assert served_version(store) == "2"
    assert store.state.previous is not None
    assert store.state.previous.version == "1"


def test_a_failed_trial_serves_the_old_bundle_and_is_not_offered_again(
    store: Store, old: Packed, new: Packed
) -> None:
    commit(store, old)
    stage(store, new)
    store.begin_trial()
    store.fail(new.id, "p95 of 9 ms, at most 5 allowed", {"p95": 9})
    assert served_version(store) == "1"
    with pytest.raises(RefusedBundleError, match="p95 of 9 ms"):
        stage(store, new)
    stage(store, new, again=True)
    store.begin_trial()
    assert served_version(store) == "2"


def test_a_rollback_by_hand_serves_the_previous_bundle(
    store: Store, old: Packed, new: Packed
) -> None:
    commit(store, old)
    commit(store, new)
    store.roll_back("customers complain")
    assert served_version(store) == "1"
    with pytest.raises(SlotsError, match="no bundle to go back to"):
        store.roll_back("once more")


def test_a_rollback_cancels_what_is_being_fetched(store: Store, old: Packed, new: Packed) -> None:
    commit(store, old)
    artifacts = store.prepare(new.manifest, new.signature, keys=TRUSTED, target=CPU)
    Store.open(store.root).roll_back("by hand")
    with pytest.raises(InstallCancelledError):
        fill(store, new, artifacts)
    with pytest.raises(BundleError):
        store.stage()
    assert served_version(store) == "1"


def test_files_of_both_bundles_are_stored_once_and_unnamed_ones_are_removed(
    store: Store, old: Packed, new: Packed
) -> None:
    commit(store, old)
    commit(store, new)
    blobs = {path.name for path in (store.root / "blobs/sha256").iterdir()}
    assert blobs == set(old.blobs) | set(new.blobs)
    store.roll_back("by hand")
    store.clean()
    blobs = {path.name for path in (store.root / "blobs/sha256").iterdir()}
    assert blobs == set(old.blobs)


def test_a_second_process_is_told_who_is_at_work(store: Store) -> None:
    with (
        pytest.raises(SlotsBusyError, match=r"in use by: test \(process \d+\)"),
        Store.open(store.root).changing("other"),
    ):
        pass


def test_an_unsigned_bundle_changes_nothing(store: Store, old: Packed) -> None:
    before = sorted(path for path in store.root.rglob("*"))
    with pytest.raises(TrustError):
        store.prepare(old.manifest, None, keys=TRUSTED, target=CPU)
    assert sorted(path for path in store.root.rglob("*")) == before


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path, old: Packed) -> None:
    store = Store.open(tmp_path / "root", min_free_bytes=1 << 60)
    with store.changing("test"), pytest.raises(SpaceError, match="kept free"):
        stage(store, old)
    assert store.state.coming is None


def test_files_that_another_process_removed_are_missed(tmp_path: Path, old: Packed) -> None:
    store = Store.open(tmp_path / "root", min_free_bytes=0)
    with store.changing("first"):
        commit(store, old)
    for path in (store.root / "blobs/sha256").iterdir():
        path.unlink()
    with store.changing("second"):
        store.prepare(old.manifest, old.signature, keys=TRUSTED, target=CPU)
        with pytest.raises(BundleError, match="missing or damaged"):
            store.stage()
