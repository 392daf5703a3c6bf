"""Changes of the channel's document: pure functions from one Channel to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edge.errors import UsageError
from edge.manifest import is_plain_name
from edge.update.channel import Channel, Offer, Override, Release
from edge.update.channel_keys import BundleKey

ALL_DEVICES = (100.0,)
MIN_PREFIX = 8  # of an id that a person types


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """What `promote` is asked for. waves: None keeps those of a release that is offered already."""

    release: str
    to: str
    waves: tuple[float, ...] | None
    to_all: bool = False
    override: Override | None = None


def find_release(channel: Channel, wanted: str) -> Release:
    """Return the release that an id, the beginning of one, or a version names.

    Raises UsageError if none or several are meant.
    """
    found = [r for r in channel.releases if r.version == wanted and r.revoked is None]
    if not found and len(wanted) >= MIN_PREFIX:
        found = [r for r in channel.releases if r.id.startswith(wanted)]
    if len(found) != 1:
        known = ", ".join(f"{r.version} ({r.id[:12]})" for r in channel.releases) or "none"
        what = "several releases are" if found else "no release is"
        raise UsageError(f"{what} called {wanted!r}; there are: {known}")
    return found[0]


def find_key(keys: Sequence[BundleKey], wanted: str) -> BundleKey:
    """Return the bundle key that an id, the beginning of one, or a name means."""
    found = [k for k in keys if wanted == k.name]
    if not found and len(wanted) >= MIN_PREFIX:
        found = [k for k in keys if k.keyid.startswith(wanted)]
    if len(found) != 1:
        known = ", ".join(f"{k.name} ({k.keyid[:12]})" for k in keys) or "none"
        raise UsageError(f"{wanted!r} names {len(found)} bundle keys; there are: {known}")
    return found[0]


def with_release(channel: Channel, release: Release) -> Channel:
    """Return the channel with one release more; its sequence is set here.

    One that was published before keeps its place and takes the new signer.
    """
    before = channel.release(release.id)
    if before is not None:
        if before.revoked is not None:
            raise UsageError(
                f"release {release.version} was revoked ({before.revoked}); pack a new one"
            )
        return _with(channel, replace(before, signed_by=release.signed_by))
    sequence = 1 + max((r.sequence for r in channel.releases), default=0)
    return replace(channel, releases=(*channel.releases, replace(release, sequence=sequence)))


def with_promotion(channel: Channel, wanted: Promotion) -> Channel:
    """Return the channel with a release offered, or offered to its next wave.

    Raises UsageError if that is not possible, or no device could follow the name.
    """
    if not is_plain_name(wanted.to):
        raise UsageError(
            f"{wanted.to!r} is no name to follow: use 1 to 128 letters, digits, '.', '-' and '_'"
        )
    release = find_release(channel, wanted.release)
    if release.revoked is not None:
        raise UsageError(f"release {release.version} was revoked: {release.revoked}")
    before = channel.offers.get(wanted.to)
    if before is not None and before.release == release.id and wanted.waves is None:
        offer = _next_wave(before, wanted, release)
    else:
        offer = _new_offer(channel, before, wanted, release)
    if wanted.override is not None:
        offer = replace(offer, override=wanted.override)
    return replace(channel, offers={**channel.offers, wanted.to: offer})


def with_wave_reached(
    channel: Channel, release_id: str, to: str, waves: tuple[float, ...], wave: int
) -> Channel:
    """Return the channel with a release offered up to the wave of this index, or as far as it was.

    Raises UsageError if it is offered in other waves already.
    """
    offer = channel.offers.get(to)
    if offer is None or offer.release != release_id:
        channel = with_promotion(channel, Promotion(release=release_id, to=to, waves=waves))
        offer = channel.offers[to]
    elif offer.waves != waves:
        given, wanted = (", ".join(f"{s:g}%" for s in w) for w in (offer.waves, waves))
        raise UsageError(
            f"{to} offers this release in waves of {given} already, and not of {wanted}; go on "
            "with `channel promote`, or roll out with the same --waves and inventory"
        )
    offer = replace(offer, wave=max(offer.wave, wave))
    return replace(channel, offers={**channel.offers, to: offer})


def with_revoked_release(channel: Channel, wanted: str, reason: str) -> Channel:
    """Return the channel with a release revoked and no longer offered to anybody.

    Where it was offered, what was offered before it stays, if anything.
    """
    release = find_release(channel, wanted)
    offers = {}
    for name, offer in channel.offers.items():
        previous = None if offer.previous == release.id else offer.previous
        if offer.release != release.id:
            offers[name] = replace(offer, previous=previous)
        elif previous is not None:
            offers[name] = Offer(release=previous, waves=ALL_DEVICES, wave=0)
    return replace(_with(channel, replace(release, revoked=reason)), offers=offers)


def with_revoked_key(channel: Channel, key: BundleKey, reason: str) -> Channel:
    """Return the channel with a bundle key revoked.

    Raises UsageError while a release that is offered was signed by it alone: devices would be left
    with a bundle that they may not open again.
    """
    for name, offer in channel.offers.items():
        offered = {offer.release} if is_everywhere(offer) else {offer.release, offer.previous}
        for release_id in offered - {None}:
            release = channel.release(release_id or "")
            if release is not None and release.signed_by == key.keyid:
                raise UsageError(
                    f"{release.version}, which {name} offers, was signed by key {key.name}; sign "
                    "and publish it again with another key first, or revoke the release"
                )
    return replace(channel, revoked_keys={**channel.revoked_keys, key.keyid: reason})


def is_everywhere(offer: Offer) -> bool:
    """Whether an offer has reached all devices."""
    return offer.waves[offer.wave] == ALL_DEVICES[-1]


def _next_wave(before: Offer, wanted: Promotion, release: Release) -> Offer:
    last = len(before.waves) - 1
    if before.wave == last and wanted.override is None:
        raise UsageError(f"release {release.version} has reached its last wave in {wanted.to}")
    return replace(before, wave=last if wanted.to_all else min(before.wave + 1, last))


def _new_offer(
    channel: Channel, before: Offer | None, wanted: Promotion, release: Release
) -> Offer:
    current = None if before is None else channel.release(before.release)
    if current is not None and current.sequence > release.sequence and wanted.override is None:
        raise UsageError(
            f"release {release.version} is older than {current.version}, which {wanted.to} offers; "
            "devices refuse to go back, unless --allow-downgrade says why they should"
        )
    waves = wanted.waves or ALL_DEVICES
    if list(waves) != sorted(set(waves)) or not 0 < waves[0] <= waves[-1] <= 100:
        raise UsageError("waves are growing shares of the devices in percent, such as 1,10,100")
    previous = None
    if before is not None:
        previous = before.release if is_everywhere(before) else before.previous
    return Offer(
        release=release.id,
        waves=waves,
        wave=len(waves) - 1 if wanted.to_all else 0,
        previous=None if previous == release.id else previous,
    )


def _with(channel: Channel, release: Release) -> Channel:
    return replace(
        channel,
        releases=tuple(release if r.id == release.id else r for r in channel.releases),
    )
