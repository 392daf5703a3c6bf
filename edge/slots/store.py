"""The store of bundles on a device: two slots, the files that they share, and the state.

Order is what makes it safe: files first, then their names, then one atomic replace of state.json;
and nothing is removed before the state that no longer names it is durable. An installation is

    with store.changing("install"):
        for artifact in store.missing(store.prepare(manifest, signature, keys=..., target=...)):
            store.receive(artifact, chunks, offset=0)
        store.stage()
        store.begin_trial()
        ...  # the agent serves the trial, the gate judges it
        store.commit(bundle, report)  # or store.fail(bundle, reason, report)

A rollback by hand needs no lock: whoever installs meets InstallCancelledError or SlotsError then.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edge.bundle import signer_of
from edge.errors import (
    BundleError,
    InstallCancelledError,
    SlotsBusyError,
    SpaceError,
)
from edge.files import storage_errors
from edge.manifest import Artifact
from edge.manifest_reading import manifest_from_bytes
from edge.slots import state as machine
from edge.slots.digests import altered
from edge.slots.filesystem import Filesystem, OsFilesystem
from edge.slots.garbage import UnreadableSlotError, reclaimable_bytes, remove_unnamed, unnamed_files
from edge.slots.layout import (
    Layout,
    make_layout,
    state_in,
    write_durably,
)
from edge.slots.needs import artifacts_for
from edge.slots.receiving import receive_file
from edge.slots.reports import keep_report
from edge.slots.state import (
    Event,
    SlotBundle,
    SlotName,
    SlotsState,
    bundle_id,
    bytes_from_state,
    decide,
)
from edge.target import Target
from edge.trust import TrustedKey

MIN_FREE_BYTES = 128 << 20  # that an installation leaves free for everything else on the device
LOOK_EVERY_S = 1.0  # at the free space, and whether somebody rolled back
BLOCK_BYTES = 4096  # a file takes whole blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What an installation takes at its peak, and what there is for it."""

    needed_bytes: int
    free_bytes: int
    reclaimed_bytes: int
    kept_free_bytes: int

    @property
    def is_enough(self) -> bool:
        """Whether the bundle fits beside the one in service."""
        return self.needed_bytes + self.kept_free_bytes <= self.free_bytes + self.reclaimed_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Preparation:
    bundle: SlotBundle
    slot: SlotName
    artifacts: tuple[Artifact, ...]


class Store:
    """Used by one thread. min_free_bytes: of the disk, for everything else on the device."""

    def __init__(
        self,
        root: Path,
        *,
        filesystem: Filesystem,
        min_free_bytes: int,
        workers: int | None,
        clock: Callable[[], float],
    ) -> None:
        self.root = root
        self._disk = filesystem
        self._layout = Layout(root)
        self._min_free_bytes = min_free_bytes
        self._workers = workers
        self._clock = clock
        self._is_changing = False
        self._preparation: _Preparation | None = None
        self._verified: set[str] = set()  # digests seen to be right while changing
        self._next_look = clock()

    @classmethod
    def open(
        cls,
        root: Path,
        *,
        filesystem: Filesystem | None = None,
        min_free_bytes: int = MIN_FREE_BYTES,
        workers: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> Store:
        """Return the store at root, which is made if it is missing; raises StorageError."""
        store = cls(
            root,
            filesystem=OsFilesystem() if filesystem is None else filesystem,
            min_free_bytes=min_free_bytes,
            workers=workers,
            clock=clock,
        )
        with storage_errors("prepare", root):
            make_layout(store._disk, store._layout)
        return store

    @classmethod
    def seen(cls, root: Path, *, min_free_bytes: int = MIN_FREE_BYTES) -> Store:
        """Return the store at root, or where it would be, to look at and never to change."""
        return cls(
            root,
            filesystem=OsFilesystem(),
            min_free_bytes=min_free_bytes,
            workers=None,
            clock=time.monotonic,
        )

    @property
    def state(self) -> SlotsState:
        """The state as it is on disk now."""
        return state_in(self.root, filesystem=self._disk)

    def slot_path(self, slot: SlotName) -> Path:
        """Return the folder of a slot, for `open_bundle(..., is_slot=True)`."""
        return self._layout.slot(slot)

    @contextlib.contextmanager
    def changing(self, doing: str, *, wait: bool = False) -> Iterator[None]:
        """Be the only one who installs, judges a trial or cleans up.

        doing: in words, for whoever is refused meanwhile. wait: until whoever is at work is done,
        or dead. Raises SlotsBusyError with the words of the holder.
        """
        path, note = self.root / "lock", f"{doing} (process {os.getpid()})"
        with contextlib.ExitStack() as stack:
            with storage_errors("lock", path):
                holder = stack.enter_context(self._disk.lock(path, wait=wait, note=note))
            if holder is not None:
                raise SlotsBusyError(
                    f"the slots in {self.root} are in use by: {holder}; wait until it is done, or "
                    "end it with `edge-agent rollback`"
                )
            self._is_changing = True
            self._verified.clear()  # others may have changed the files since
            try:
                yield
            finally:
                self._is_changing = False

    def prepare(
        self,
        manifest: bytes,
        signature: bytes | None,
        *,
        keys: tuple[TrustedKey, ...],
        target: Target,
        release: str | None = None,
        again: bool = False,
        allow_unsigned: bool = False,
    ) -> tuple[Artifact, ...]:
        """Reserve the idle slot for a bundle, and return the files that this device needs of it.

        again: even if it was rolled back here before. A bundle that is committed, or on its way
        already, stays where it is. Nothing is written before signature, refusals and free space
        are checked. Raises TrustError, BundleError, SlotsError, SpaceError or StorageError.
        """
        assert self._is_changing  # noqa: S101 - see `changing`
        bundle, artifacts = self.judge(
            manifest, signature, keys=keys, target=target, allow_unsigned=allow_unsigned,
            release=release,
        )  # fmt: skip
        begun = machine.FetchBegun(bundle=bundle, again=again)
        with storage_errors("prepare", self.root):
            self._disk.sync_directory(self.root)  # what is on disk now stays, before it is used
            decide(self.state, begun)
            self.check_space(artifacts)
            state = self._apply(begun)
            slot = state.committed if state.candidate is None else state.candidate.slot
            assert slot is not None  # noqa: S101 - a bundle without candidate is committed
            self._write_slot(slot, manifest, signature)
            self._preparation = _Preparation(bundle=bundle, slot=slot, artifacts=artifacts)
            # A bundle must come in although the slot beside it is damaged: it may be the cure.
            with contextlib.suppress(UnreadableSlotError):
                remove_unnamed(self._disk, self._layout, state)
        return artifacts

    def judge(
        self,
        manifest: bytes,
        signature: bytes | None,
        *,
        keys: tuple[TrustedKey, ...],
        target: Target,
        release: str | None = None,
        allow_unsigned: bool = False,
    ) -> tuple[SlotBundle, tuple[Artifact, ...]]:
        """Return what a bundle is and what this device needs of it; changes nothing."""
        signer_of(manifest, signature, keys, allow_unsigned=allow_unsigned, root=Path())
        content = manifest_from_bytes(manifest)
        bundle = SlotBundle(
            id=bundle_id(manifest), name=content.name, version=content.version, release=release
        )
        return bundle, artifacts_for(content, target)

    def missing(
        self, artifacts: Iterable[Artifact], *, verify: bool = True
    ) -> tuple[Artifact, ...]:
        """Return those that are not here, or are damaged; without verify, sizes alone are seen."""
        with storage_errors("read", self._layout.blobs):
            if not verify:
                return tuple(
                    a for a in artifacts if self._disk.size(self._layout.blob(a.sha256)) != a.size
                )
            unknown = [a for a in artifacts if a.sha256 not in self._verified]
            wrong = altered(self._disk, self._layout, unknown, workers=self._workers)
        self._verified.update({a.sha256 for a in unknown} - {a.sha256 for a in wrong})
        return tuple(a for a in unknown if a in wrong)

    def received_bytes(self, artifact: Artifact) -> int:
        """Return how much of a file has arrived and may be left out when it is fetched again."""
        path = self._layout.part(artifact.sha256)
        with storage_errors("read", path):
            return min(self._disk.size(path) or 0, artifact.size)

    def receive(self, artifact: Artifact, chunks: Iterable[bytes], *, offset: int) -> None:
        """Take the bytes of a file from offset on, and keep it if they match its digest.

        offset: at most `received_bytes`. Chunks may end early, or raise: what came is kept. Raises
        BundleError if bytes are missing, or wrong; then nothing is kept. Raises SpaceError when
        the disk gets full, InstallCancelledError after a rollback.
        """
        preparation = self._prepared()

        def look(must: bool) -> None:
            if must or self._clock() >= self._next_look:
                self._look(preparation)

        receive_file(self._disk, self._layout, artifact, chunks, offset=offset, look=look)
        self._verified.add(artifact.sha256)

    def stage(self) -> SlotName:
        """Check every file of the prepared bundle, and return its slot: ready for a trial.

        Raises BundleError if a file is missing or damaged, InstallCancelledError after a rollback.
        """
        preparation = self._prepared()
        for artifact in self.missing(preparation.artifacts):
            raise BundleError(
                f"{artifact.path} is missing or damaged in {self._layout.blobs}; install the "
                "bundle again"
            )
        with storage_errors("write", self._layout.blobs):
            # A file may have got its name from a process that was killed right after.
            self._disk.sync_directory(self._layout.blobs)
        if self.state.committed != preparation.slot:
            self._apply(machine.Staged(id=preparation.bundle.id))
        self._preparation = None
        return preparation.slot

    def begin_trial(self) -> SlotsState:
        """Let the agent serve what is staged."""
        return self._apply(machine.TrialBegun())

    def count_start(self) -> SlotsState:
        """Count a start of the agent; the trial that started too often is rolled back here."""
        return self._apply(machine.StartCounted())

    def commit(self, bundle: str, report: object = None) -> SlotsState:
        """Make the trial of the bundle with this id the bundle in service."""
        return self._apply(machine.GatePassed(id=bundle), report)

    def fail(self, bundle: str, reason: str, report: object = None) -> SlotsState:
        """End the trial of the bundle with this id: the committed one serves again."""
        return self._apply(machine.GateFailed(id=bundle, reason=reason), report)

    def roll_back(self, reason: str, report: object = None) -> SlotsState:
        """Go back by hand: end what is under way, or else serve the previous bundle again."""
        return self._apply(machine.RollbackAsked(reason=reason), report)

    def clean(self) -> int:
        """Remove what no slot names, and return how many bytes became free."""
        assert self._is_changing  # noqa: S101 - see `changing`
        with storage_errors("clean", self.root):
            self._disk.sync_directory(self.root)
            return remove_unnamed(self._disk, self._layout, self.state)

    def unnamed_bytes(self) -> int:
        """Return how many bytes `clean` would remove."""
        with storage_errors("examine", self.root):
            paths = unnamed_files(self._disk, self._layout, self.state)
            return sum(self._disk.size(path) or 0 for path in paths)

    def space_for(self, artifacts: tuple[Artifact, ...]) -> Space:
        """Return what these files take beside the bundle in service, and what is free."""
        with storage_errors("examine", self.root):
            return Space(
                needed_bytes=sum(
                    artifact.size - self.received_bytes(artifact) + BLOCK_BYTES
                    for artifact in self.missing(artifacts, verify=False)
                ),
                free_bytes=self._disk.free_bytes(self.root),
                reclaimed_bytes=reclaimable_bytes(self._disk, self._layout, self.state, artifacts),
                kept_free_bytes=self._min_free_bytes,
            )

    def check_space(self, artifacts: tuple[Artifact, ...]) -> None:
        """Raise SpaceError if these files do not fit beside the bundle in service."""
        space = self.space_for(artifacts)
        if not space.is_enough:
            raise SpaceError(
                f"{self.root} has {_mb(space.free_bytes + space.reclaimed_bytes)} for bundles, and "
                f"the new files take {_mb(space.needed_bytes)} while {_mb(self._min_free_bytes)} "
                "are kept free; make room on that disk"
            )

    def _prepared(self) -> _Preparation:
        assert self._is_changing  # noqa: S101 - see `changing`
        assert self._preparation is not None  # noqa: S101 - see `prepare`
        return self._preparation

    def _write_slot(self, slot: SlotName, manifest: bytes, signature: bytes | None) -> None:
        files = {self._layout.manifest(slot): manifest, self._layout.signature(slot): signature}
        for path, content in files.items():
            if content is None:
                self._disk.remove(path)
            elif self._disk.size(path) != len(content) or content != self._disk.read(
                path, max_bytes=len(content)
            ):
                write_durably(self._disk, path, content)
        self._disk.sync_directory(self._layout.slot(slot))

    def _look(self, preparation: _Preparation) -> None:
        """Raise if the disk gets full, or somebody rolled back."""
        self._next_look = self._clock() + LOOK_EVERY_S
        with storage_errors("examine", self.root):
            free = self._disk.free_bytes(self.root)
        if free < self._min_free_bytes:
            raise SpaceError(
                f"only {_mb(free)} are left on the disk of {self.root}, and "
                f"{_mb(self._min_free_bytes)} are kept free; make room and install again: what "
                "has arrived is kept"
            )
        held = self.state.bundle(preparation.slot)
        if held is None or held.id != preparation.bundle.id:
            raise InstallCancelledError(
                f"the installation of {preparation.bundle.name} {preparation.bundle.version} was "
                "cancelled by a rollback"
            )

    def _apply(self, event: Event, report: object = None) -> SlotsState:
        """Write the state after an event, and return it; nothing else writes state.json."""
        path = self.root / "state.lock"
        with storage_errors("write", self._layout.state), self._disk.lock(path, wait=True, note=""):
            before = self.state
            after = decide(before, event)
            if after != before:
                write_durably(self._disk, self._layout.state, bytes_from_state(after))
                if after.changes != before.changes:
                    keep_report(self._disk, self._layout.reports, after, report)
        return after


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
