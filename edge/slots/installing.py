"""A bundle folder into the idle slot, and what that would take; each step said in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edge.bundle import MANIFEST_NAME, SIGNATURE_NAME, blob_path
from edge.errors import BundleError, EdgeError, InstallCancelledError
from edge.files import CHUNK_BYTES, open_regular, read_capped, storage_errors
from edge.manifest import MAX_MANIFEST_BYTES, Artifact
from edge.slots.needs import bytes_of
from edge.slots.state import FetchBegun, SlotBundle, SlotName, decide
from edge.slots.store import Store
from edge.target import Target
from edge.trust import MAX_SIGNATURE_BYTES, TrustedKey

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A bundle that shall be installed, and who may have signed it."""

    manifest: bytes
    signature: bytes | None
    keys: tuple[TrustedKey, ...]
    target: Target
    release: str | None = None
    again: bool = False
    allow_unsigned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingFile:
    """A file that the device needs and does not have."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What an installation would do. problem: why it would be refused, None if it would not."""

    bundle: SlotBundle
    is_unchanged: bool
    needed_files: int
    missing: tuple[MissingFile, ...]
    needed_bytes: int
    free_bytes: int
    kept_free_bytes: int
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """A bundle that lies in a slot. is_committed: nothing is to be tried, it serves already."""

    bundle: SlotBundle
    slot: SlotName
    is_committed: bool
    fetched_files: int
    fetched_bytes: int


def content_of(bundle: Path) -> tuple[bytes, bytes | None]:
    """Return (manifest, signature or None) of a bundle folder; raises BundleError."""
    path = bundle / MANIFEST_NAME
    with storage_errors("read", bundle):
        if not path.exists():
            raise BundleError(f"no bundle at {bundle}: it has no {MANIFEST_NAME}")
        is_signed = (bundle / SIGNATURE_NAME).exists()
    signature = None
    if is_signed:
        signature = read_capped(bundle / SIGNATURE_NAME, max_bytes=MAX_SIGNATURE_BYTES)
    return read_capped(path, max_bytes=MAX_MANIFEST_BYTES), signature


def plan(store: Store, wish: Wish) -> Plan:
    """Return what `install` would do now; changes nothing, and reads no file but the manifest."""
    bundle, artifacts = store.judge(
        wish.manifest, wish.signature, keys=wish.keys, target=wish.target,
        allow_unsigned=wish.allow_unsigned, release=wish.release,
    )  # fmt: skip
    state, problem = store.state, None
    try:
        after = decide(state, FetchBegun(bundle=bundle, again=wish.again))
        store.check_space(artifacts)
    except EdgeError as error:
        problem, after = str(error), state
    missing = store.missing(artifacts, verify=False)
    space = store.space_for(artifacts)
    return Plan(
        bundle=bundle,
        is_unchanged=problem is None and after.candidate is None,
        needed_files=len(artifacts),
        missing=tuple(MissingFile(sha256=a.sha256, size=a.size) for a in missing),
        needed_bytes=space.needed_bytes,
        free_bytes=space.free_bytes + space.reclaimed_bytes,
        kept_free_bytes=space.kept_free_bytes,
        problem=problem,
    )


def install(
    store: Store,
    wish: Wish,
    fetch: Callable[[Artifact, int], Iterable[bytes]],
    *,
    say: Say = lambda line: None,
) -> Installed:
    """Bring a bundle into its slot, inside `store.changing`.

    fetch: gives the bytes of a file from an offset on. What was interrupted goes on where it was.
    Raises what `Store` and fetch raise.
    """
    artifacts = store.prepare(
        wish.manifest, wish.signature, keys=wish.keys, target=wish.target, release=wish.release,
        again=wish.again, allow_unsigned=wish.allow_unsigned,
    )  # fmt: skip
    missing = store.missing(artifacts)
    fetched = sum(artifact.size - store.received_bytes(artifact) for artifact in missing)
    say(
        f"fetching {len(missing)} of {len(artifacts)} files, {fetched:,} of "
        f"{bytes_of(artifacts):,} bytes"
    )
    try:
        for artifact in missing:
            receive(store, artifact, fetch)
        slot = store.stage()
    except InstallCancelledError:
        store.clean()
        raise
    state = store.state
    bundle = state.bundle(slot)
    assert bundle is not None  # noqa: S101 - `stage` has named it
    is_committed = state.committed == slot
    say(f"slot {slot} holds {bundle.name} {bundle.version}, every byte checked")
    return Installed(
        bundle=bundle,
        slot=slot,
        is_committed=is_committed,
        fetched_files=len(missing),
        fetched_bytes=fetched,
    )


def receive(
    store: Store, artifact: Artifact, fetch: Callable[[Artifact, int], Iterable[bytes]]
) -> None:
    """Bring a file in; one that went wrong after it was resumed is fetched once from its start."""
    offset = store.received_bytes(artifact)
    try:
        store.receive(artifact, fetch(artifact, offset), offset=offset)
    except BundleError:
        if offset == 0 or store.received_bytes(artifact) > 0:
            raise
        store.receive(artifact, fetch(artifact, 0), offset=0)


def fetch_from(bundle: Path) -> Callable[[Artifact, int], Iterator[bytes]]:
    """Return what reads the files of a bundle folder."""

    def fetch(artifact: Artifact, offset: int) -> Iterator[bytes]:
        path = blob_path(bundle, artifact.sha256)
        with storage_errors("read", path), open_regular(path) as file:
            file.seek(offset)
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    return fetch
