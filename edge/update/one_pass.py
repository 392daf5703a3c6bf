"""One pass of an update: is the channel current, what does it offer me, fetch it, try it.

Whatever goes wrong before the trial leaves the bundle in service alone. Metadata that is refused
is a ChannelError; metadata that cannot be proved current is a FreshnessError.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from edge.bundle import SIGNATURE_NAME
from edge.errors import ChannelError, FreshnessError, InstallCancelledError, TrustError
from edge.files import read_capped
from edge.manifest import MAX_MANIFEST_BYTES, Artifact
from edge.manifest_reading import manifest_from_bytes
from edge.slots.needs import bytes_of
from edge.slots.state import SlotBundle, SlotName, SlotsState, bundle_id
from edge.slots.store import Store
from edge.target import Target
from edge.trust import MAX_SIGNATURE_BYTES, signature_from_bytes
from edge.update.channel import (
    CHANNEL_TARGET,
    MAX_CHANNEL_BYTES,
    Channel,
    Release,
    blob_target,
    channel_from_bytes,
    manifest_target,
    signature_target,
)
from edge.update.channel_keys import (
    ChannelKeys,
    add_keys,
    key_changes,
    remove_keys,
)
from edge.update.decision import Decision, Device, decide
from edge.update.dry_run import Workplace, dry_workplace, real_workplace
from edge.update.memory import Memory, read_memory, write_memory
from edge.update.origin import Origin
from edge.update.settings import Followed
from edge.update.status import TIME_FORMAT
from edge.update.transfer import Transfer, bring_all
from edge.update.tuf_client import ChannelClient

# Clocks of devices without a battery jump back; those that only drift are no matter.
CLOCK_SLACK = timedelta(days=1)

Verdict = Literal["current", "would-install", "staged", "installed", "rolled-back", "refused"]
# Tries what is staged, or goes on with a trial that was interrupted, and commits it or fails it, in
# the store; returns whether it was committed.
Gate = Callable[[Store], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What `update` is asked for."""

    slots: Path
    trusted_keys: Path
    followed: Followed
    dry_run: bool = False
    again: bool = False
    stage_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a pass meets: the channel's files, this machine, the time, the judge of trials."""

    origin: Origin
    target: Target
    now: datetime
    gate: Gate
    say: Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a pass ended. needed: what was missing here. warning: something to act on."""

    verdict: Verdict
    reason: str
    release: Release | None = None
    override: str | None = None
    fresh_until: str
    needed: tuple[Artifact, ...] = ()
    needed_bytes: int = 0
    received_bytes: int = 0
    keys_added: tuple[str, ...] = ()
    keys_removed: tuple[str, ...] = ()
    warning: str | None = None

    @property
    def is_good(self) -> bool:
        """Whether there is nothing for an operator to look at."""
        return self.verdict not in {"rolled-back", "refused"} and self.warning is None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Offered:
    """A release whose files are named and whose signature holds."""

    release: Release
    manifest: bytes
    signature: bytes
    artifacts: tuple[Artifact, ...]


def run_pass(wishes: Wishes, around: Surroundings) -> Outcome:
    """Do one pass and return how it ended.

    Raises FreshnessError, ChannelError, TrustError, BundleError, SlotsError or StorageError; what
    is served stays then.
    """
    anchor = read_capped(wishes.followed.channel_root, max_bytes=256 << 10, follow_links=True)
    opened = dry_workplace(wishes.slots) if wishes.dry_run else real_workplace(wishes.slots)
    with opened as place:
        _finish_trial(wishes, around, place.store)
        memory = read_memory(place.folder)
        _check_clock(memory, around.now)
        client = ChannelClient(around.origin, place.folder / "metadata", anchor)
        client.refresh()
        channel = channel_from_bytes(client.read(CHANNEL_TARGET, max_bytes=MAX_CHANNEL_BYTES))
        return _follow(wishes, around, place, client, channel, memory)


def _finish_trial(wishes: Wishes, around: Surroundings, store: Store) -> None:
    """Judge a trial whose judge was killed, also offline: nobody else does before the next boot."""
    candidate = store.state.candidate
    if wishes.dry_run or candidate is None or candidate.phase != "trial":
        return
    around.say("a trial was interrupted; it is finished first")
    around.gate(store)
    store.clean()


def _follow(
    wishes: Wishes,
    around: Surroundings,
    place: Workplace,
    client: ChannelClient,
    channel: Channel,
    memory: Memory,
) -> Outcome:
    store, folder = place.store, place.folder
    keys = ChannelKeys(listed=client.bundle_keys, revoked=channel.revoked_keys)
    changes = key_changes(keys, wishes.trusted_keys, in_use=_signer(store))
    memory = _remembered(memory, channel, store.state, client.targets_keys, around.now)
    if not wishes.dry_run:
        add_keys(changes, wishes.trusted_keys)
        write_memory(folder, memory)
    decision = decide(
        channel,
        wishes.followed.follow,
        _device(wishes, store.state, memory, client, around.now),
        again=wishes.again,
    )
    outcome = Outcome(
        verdict="refused" if decision.verdict == "refused" else "current",
        reason=decision.reason,
        release=decision.release,
        override=decision.override,
        fresh_until=client.fresh_until.strftime(TIME_FORMAT),
        keys_added=tuple(key.name for key in changes.added),
    )
    if decision.verdict == "install" or _is_signed_anew(decision, store, client):
        outcome = _install(wishes, around, store, client, keys, channel, decision, outcome)
    changes = key_changes(keys, wishes.trusted_keys, in_use=_signer(store))
    outcome = replace(outcome, keys_removed=tuple(path.name for path in changes.removed))
    if not wishes.dry_run:
        remove_keys(changes)
        write_memory(
            folder, _remembered(memory, channel, store.state, client.targets_keys, around.now)
        )
    return replace(outcome, warning=_warning(channel, store, keys))


def _install(
    wishes: Wishes,
    around: Surroundings,
    store: Store,
    client: ChannelClient,
    keys: ChannelKeys,
    channel: Channel,
    decision: Decision,
    outcome: Outcome,
) -> Outcome:
    assert decision.release is not None  # noqa: S101 - that is what is installed
    if decision.override is not None:
        around.say(f"warning: {decision.override}")
    offered = _offered(decision.release, channel, store, client, keys, around.target)
    missing = store.missing(offered.artifacts, verify=not wishes.dry_run)
    outcome = replace(outcome, needed=missing, needed_bytes=bytes_of(missing))
    if wishes.dry_run:
        store.check_space(offered.artifacts)
        return replace(outcome, verdict="would-install")
    artifacts = store.prepare(
        offered.manifest,
        offered.signature,
        keys=keys.trusted,
        target=around.target,
        release=offered.release.id,
        again=wishes.again,
    )
    transfer = Transfer(store, around.origin)
    try:
        bring_all(transfer, store.missing(artifacts), around.say)
        store.stage()
    except InstallCancelledError:  # somebody rolled back meanwhile
        store.clean()
        raise
    outcome = replace(outcome, received_bytes=transfer.received_bytes)
    if store.state.coming is None:
        return outcome  # it serves already; its signature or its files were made good
    if wishes.stage_only:
        return replace(outcome, verdict="staged")
    around.say(f"trial: {offered.release.name} {offered.release.version}")
    # The gate begins the trial: it measures the bundle in service before the switch.
    if around.gate(store):
        return replace(outcome, verdict="installed")
    last = store.state.last
    reason = last.reason if last is not None and last.reason else "its trial was ended"
    return replace(outcome, verdict="rolled-back", reason=reason)


def _offered(
    release: Release,
    channel: Channel,
    store: Store,
    client: ChannelClient,
    keys: ChannelKeys,
    target: Target,
) -> _Offered:
    """Return the release's files; raises TrustError or ChannelError if they do not fit together."""
    manifest = client.read(manifest_target(release.id), max_bytes=MAX_MANIFEST_BYTES)
    signature = client.read(signature_target(release.id), max_bytes=MAX_SIGNATURE_BYTES)
    if bundle_id(manifest) != release.id:
        raise ChannelError(f"the channel lists another manifest under release {release.id[:12]}")
    signer = signature_from_bytes(signature).keyid
    if signer in keys.revoked:
        raise TrustError(
            f"release {release.version} was signed by key {keys.name(signer)}, which was revoked: "
            f"{keys.revoked[signer]}; sign it with another key and publish it again"
        )
    bundle, artifacts = store.judge(manifest, signature, keys=keys.trusted, target=target)
    if bundle.name != channel.product:
        raise ChannelError(
            f"release {release.version} holds a bundle of product {bundle.name!r}, and this is the "
            f"channel of {channel.product!r}; publish it where it belongs"
        )
    for artifact in manifest_from_bytes(manifest).artifacts:
        entry = client.target(blob_target(artifact.sha256))
        if (entry.length, entry.hashes["sha256"]) != (artifact.size, artifact.sha256):
            raise ChannelError(f"the channel lists another file for {artifact.path}; publish again")
    return _Offered(release=release, manifest=manifest, signature=signature, artifacts=artifacts)


def _is_signed_anew(decision: Decision, store: Store, client: ChannelClient) -> bool:
    """Whether the release in service has another signature in the channel than here."""
    release, here = decision.release, store.state.committed
    if decision.verdict != "current" or release is None or here is None:
        return False
    kept = _signature_in(store, here)
    path = signature_target(release.id)
    return client.read(path, max_bytes=MAX_SIGNATURE_BYTES) != kept


def _signature_in(store: Store, slot: SlotName) -> bytes | None:
    path = store.slot_path(slot) / SIGNATURE_NAME
    return read_capped(path, max_bytes=MAX_SIGNATURE_BYTES) if path.exists() else None


def _signer(store: Store) -> str | None:
    """Return the id of the key that signed the bundle in service."""
    slot = store.state.committed
    signature = None if slot is None else _signature_in(store, slot)
    return None if signature is None else signature_from_bytes(signature).keyid


def _warning(channel: Channel, store: Store, keys: ChannelKeys) -> str | None:
    """Return what an operator must know about the bundle in service."""
    bundle = _committed(store.state)
    if bundle is None:
        return None
    release = channel.release(bundle.id)
    if release is not None and release.revoked is not None:
        return f"the bundle in service, {bundle.version}, was revoked: {release.revoked}"
    signer = _signer(store)
    if signer is None or signer not in keys.revoked:
        return None
    return (
        f"the bundle in service, {bundle.version}, was signed by key {keys.name(signer)}, which "
        f"was revoked ({keys.revoked[signer]}): promote a release that another key signed; the "
        "key stays trusted here until one is in service"
    )


def _device(
    wishes: Wishes, state: SlotsState, memory: Memory, client: ChannelClient, now: datetime
) -> Device:
    committed = _committed(state)
    return Device(
        identity=wishes.followed.device,
        serving=None if committed is None else committed.id,
        product=None if committed is None else committed.name,
        sequence=memory.sequence_for(client.targets_keys),
        refused={refused.id for refused in state.refused},
        now=now.strftime(TIME_FORMAT),
    )


def _remembered(
    memory: Memory,
    channel: Channel,
    state: SlotsState,
    targets_keys: tuple[str, ...],
    now: datetime,
) -> Memory:
    committed = _committed(state)
    release = None if committed is None else channel.release(committed.id)
    sequence = max(memory.sequence_for(targets_keys), 0 if release is None else release.sequence)
    return Memory(
        sequence=sequence,
        targets_keys=targets_keys,
        seen=max(memory.seen, now.strftime(TIME_FORMAT)),
    )


def _committed(state: SlotsState) -> SlotBundle | None:
    return None if state.committed is None else state.bundle(state.committed)


def _check_clock(memory: Memory, now: datetime) -> None:
    """Raise if the clock stands before the last pass: by such a clock nothing ever expires."""
    if memory.seen and (now + CLOCK_SLACK).strftime(TIME_FORMAT) < memory.seen:
        raise FreshnessError(
            f"the clock says {now.strftime(TIME_FORMAT)}, and the last pass was at {memory.seen}; "
            "set it right, or whether the channel is current cannot be told"
        )
