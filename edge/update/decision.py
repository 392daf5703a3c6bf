"""What a device should do about a channel: a pure function of what both say."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from edge.errors import ChannelError
from edge.update.channel import Channel, Offer, Release, is_in_wave

Verdict = Literal["current", "install", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What a device knows of itself.

    identity: sorts it into waves. serving: id of the bundle that it serves, if any; product: that
    bundle's name. sequence: the largest that it ever committed, 0 before the first. refused:
    bundles that it rolled back. now: UTC, spelled as in the channel.
    """

    identity: str
    serving: str | None
    product: str | None
    sequence: int
    refused: Collection[str]
    now: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do, and why in a sentence. override: that a downgrade was allowed, by whom."""

    verdict: Verdict
    release: Release | None
    reason: str
    override: str | None = None


def decide(channel: Channel, follow: str, device: Device, *, again: bool = False) -> Decision:
    """Return what the device should do about what the channel offers to its followers.

    again: take a release that this device rolled back before.
    Raises ChannelError if there is no such channel, or it is for another product.
    """
    offer = channel.offers.get(follow)
    if offer is None:
        known = ", ".join(sorted(channel.offers)) or "none"
        raise ChannelError(f"nothing is promoted to channel {follow!r}; there are: {known}")
    if device.product not in {None, channel.product}:
        raise ChannelError(
            f"the channel is for product {channel.product!r}, this device serves "
            f"{device.product!r}; give the device the channel of its own product"
        )
    release, why = _offered(channel, offer, device)
    if release is None:
        return Decision(verdict="current", release=None, reason=why)
    if release.revoked is not None:
        return Decision(
            verdict="refused", release=release, reason=f"the release was revoked: {release.revoked}"
        )
    if release.id == device.serving:
        return Decision(verdict="current", release=release, reason=f"{why}; it is serving")
    if release.id in device.refused and not again:
        return Decision(
            verdict="refused",
            release=release,
            reason="this device rolled it back before; --again tries once more",
        )
    return _forward_or_back(release, offer, device, why)


def _offered(channel: Channel, offer: Offer, device: Device) -> tuple[Release | None, str]:
    share = f"wave {offer.wave + 1} of {len(offer.waves)} ({offer.waves[offer.wave]:g}%)"
    if is_in_wave(offer, device.identity):
        return channel.release(offer.release), f"in {share}"
    if device.serving == offer.release:  # pushed, or in a wave that began anew
        return channel.release(offer.release), f"not yet in {share}"
    if offer.previous is None:
        return None, f"not yet in {share}, and nothing was offered before"
    return channel.release(offer.previous), f"not yet in {share}"


def _forward_or_back(release: Release, offer: Offer, device: Device, why: str) -> Decision:
    if release.sequence >= device.sequence:
        return Decision(verdict="install", release=release, reason=why)
    override = offer.override if release.id == offer.release else None
    if override is None or override.until < device.now:
        ended = "" if override is None else f"; the override ended at {override.until}"
        return Decision(
            verdict="refused",
            release=release,
            reason=f"it is older (number {release.sequence}) than what this device has had "
            f"({device.sequence}){ended}; promote it with --allow-downgrade in an emergency",
        )
    return Decision(
        verdict="install",
        release=release,
        reason=why,
        override=f"downgrade allowed by {override.by} until {override.until}: {override.reason}",
    )
