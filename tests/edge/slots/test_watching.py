"""What a running agent concludes from a state that changes below it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.slots.store import Store
from edge.slots.watching import SlotFacts, SlotsWatch
from tests.edge.slots.slot_bundles import packed, stage


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store.open(tmp_path / "slots")
    with made.changing("test"):
        yield made


def try_bundle(store: Store, folder: Path, version: str) -> str:
    bundle = packed(folder / version, version)
    stage(store, bundle)
    store.begin_trial()
    return bundle.id


def test_what_is_served_changes_with_a_trial_and_not_with_its_commit(
    store: Store, tmp_path: Path
) -> None:
    waiting = SlotsWatch(store.root)
    assert not waiting.has_changed()
    one = try_bundle(store, tmp_path, "1")
    assert waiting.has_changed()
    watch = SlotsWatch(store.root)
    assert (watch.on_trial, watch.facts()) == (True, SlotFacts(slot="a", phase="trial"))
    store.commit(one)
    assert not watch.has_changed()
    assert watch.facts() == SlotFacts(slot="a", phase="committed")
    try_bundle(store, tmp_path, "2")
    assert watch.has_changed()


def test_a_first_bundle_that_was_rolled_back_is_not_served_on(store: Store, tmp_path: Path) -> None:
    one = try_bundle(store, tmp_path, "1")
    watch = SlotsWatch(store.root)
    store.fail(one, "too slow")
    assert watch.has_changed()
    assert not SlotsWatch(store.root).has_changed()  # the next process waits


@pytest.mark.parametrize("content", [None, b"", b"{}"])
def test_a_state_that_is_gone_or_damaged_changes_nothing(
    store: Store, tmp_path: Path, content: bytes | None
) -> None:
    store.commit(try_bundle(store, tmp_path, "1"))
    watch, path = SlotsWatch(store.root), store.root / "state.json"
    path.unlink() if content is None else path.write_bytes(content)
    assert not watch.has_changed()
