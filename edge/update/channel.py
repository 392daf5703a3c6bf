"""The channel's own document, `channel.json`: a target that the repository's metadata signs.

It says which releases there are, which one every follower should have, and what was revoked. TUF
proves that these bytes are the current ones; what follows from them is decided by the pure
functions here.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated

import msgspec

from edge.errors import ChannelError
from edge.manifest import Count, is_plain_name

CHANNEL_SCHEMA = 1
CHANNEL_TARGET = "channel.json"
MAX_CHANNEL_BYTES = 1 << 20
MAX_TARGETS_BYTES = 5_000_000  # of the list of targets; python-tuf's own client takes as much
# Of a release: what `manifest_target` and `blob_target` are below.
METADATA_FOLDER = "metadata"
TARGETS_FOLDER = "targets"
_BUCKETS = 1 << 64

Percent = Annotated[float, msgspec.Meta(gt=0.0, le=100.0)]
Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One published bundle.

    id: sha256 of its manifest.json. sequence: grows with every first publication; a device never
    goes back to a smaller one, unless an Override allows it. revoked: why nobody may have it.
    """

    id: Digest
    name: str
    version: str
    sequence: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    published: str
    signed_by: Digest
    revoked: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """Leave to go back to an older release, and on whose word; for emergencies.

    until: UTC, as in 2026-01-31T12:00:00Z; later it allows nothing.
    """

    by: str
    reason: str
    until: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What the followers of one channel should have.

    waves: shares of the devices in percent, growing. wave: index of the one that has been reached.
    previous: what devices of later waves should have, if anything.
    """

    release: Digest
    waves: tuple[Percent, ...]
    wave: Count
    previous: Digest | None = None
    override: Override | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """The content of channel.json; product: the name that every bundle in it has.

    revoked_keys: ids of keys that may sign bundles no longer, and why; the root lists those that
    may.
    """

    schema: Annotated[int, msgspec.Meta(ge=1, le=1)]
    product: str
    revoked_keys: dict[str, str]
    releases: tuple[Release, ...]
    offers: dict[str, Offer]

    def release(self, release_id: str) -> Release | None:
        """Return the release with this id, if it was published here."""
        return next((r for r in self.releases if r.id == release_id), None)


def manifest_target(release_id: str) -> str:
    """Return the TUF path of a release's Manifest."""
    return f"releases/{release_id}/manifest.json"


def signature_target(release_id: str) -> str:
    """Return the TUF path of a release's signature."""
    return f"releases/{release_id}/manifest.sig"


def blob_target(sha256: str) -> str:
    """Return the TUF path of a blob, which every release shares."""
    return f"blobs/{sha256}"


def stored_path(target: str, sha256: str) -> str:
    """Return where a target lies below the repository: TUF's consistent snapshots, see docs."""
    folder, _, name = target.rpartition("/")
    return "/".join(filter(None, (TARGETS_FOLDER, folder, f"{sha256}.{name}")))


def channel_from_bytes(content: bytes) -> Channel:
    """Return the document; raises ChannelError if it is malformed or contradicts itself."""
    try:
        channel = msgspec.json.decode(content, type=Channel)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ChannelError(f"{CHANNEL_TARGET} is malformed: {error}; publish again") from error
    problem = _problem(channel)
    if problem is not None:
        raise ChannelError(f"{CHANNEL_TARGET} contradicts itself: {problem}; publish again")
    return channel


def bytes_from_channel(channel: Channel) -> bytes:
    """Return the document's bytes."""
    compact = msgspec.json.encode(channel, order="sorted")
    return msgspec.json.format(compact, indent=1) + b"\n"


def share_of(device: str, release_id: str) -> float:
    """Return where a device stands among all devices for one release: in [0, 100).

    The same for ever; another release puts the devices into another order.
    """
    digest = hashlib.sha256(f"{release_id}\n{device}".encode()).digest()
    return int.from_bytes(digest[:8], "big") * 100 / _BUCKETS


def is_in_wave(offer: Offer, device: str) -> bool:
    """Whether the wave that an offer has reached includes a device."""
    return share_of(device, offer.release) < offer.waves[offer.wave]


def _problem(channel: Channel) -> str | None:
    if not is_plain_name(channel.product):
        return f"{channel.product!r} is no name of a product"
    ids = [release.id for release in channel.releases]
    sequences = [release.sequence for release in channel.releases]
    for what, values in (("release", ids), ("sequence", sequences)):
        if len(set(values)) < len(values):
            return f"a {what} is listed twice"
    for name, offer in channel.offers.items():
        if not is_plain_name(name):
            return f"{name!r} is no name of a channel"
        if not {offer.release, offer.previous} <= {*ids, None}:
            return f"{name} offers a release that is not listed"
        if not 0 <= offer.wave < len(offer.waves) or list(offer.waves) != sorted(offer.waves):
            return f"the waves of {name} do not grow"
    return None
