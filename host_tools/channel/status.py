"""What a channel says, for people and programs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import click

from edge.update.channel import Offer, Release
from edge.update.channel_keys import BundleKey
from host_tools.channel.operations import text_from_time
from host_tools.channel.repository import Repository
from host_tools.channel.signing import ROLES

SECONDS_A_DAY = 86400


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleStatus:
    """The signed metadata of one role."""

    role: str
    version: int
    threshold: int
    keys: tuple[str, ...]
    expires: str
    days_left: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The whole channel. expiring: roles that expire soon, or have."""

    product: str
    roles: tuple[RoleStatus, ...]
    expiring: tuple[str, ...]
    offers: dict[str, Offer]
    releases: tuple[Release, ...]
    keys: tuple[BundleKey, ...]
    revoked_keys: dict[str, str]


def status_of(repository: Repository, now: datetime, *, warn_days: int) -> Status:
    """Return the status; pure."""
    root = repository.root.signed
    roles = []
    for role in ROLES:
        kept = getattr(repository, role).signed
        roles.append(
            RoleStatus(
                role=role,
                version=kept.version,
                threshold=root.roles[role].threshold,
                keys=tuple(root.roles[role].keyids),
                expires=text_from_time(kept.expires),
                days_left=round((kept.expires - now).total_seconds() / SECONDS_A_DAY, 2),
            )
        )
    return Status(
        product=repository.channel.product,
        roles=tuple(roles),
        expiring=tuple(r.role for r in roles if r.days_left <= warn_days),
        offers=repository.channel.offers,
        releases=repository.channel.releases,
        keys=repository.keys.listed,
        revoked_keys=repository.channel.revoked_keys,
    )


def print_status(status: Status) -> None:
    """Print it within 80 columns."""
    click.echo(f"channel of {status.product}")
    for role in status.roles:
        mark = "  EXPIRING" if role.role in status.expiring else ""
        click.echo(
            f"  {role.role:<10} v{role.version:<5} {role.threshold} of {len(role.keys)} keys, "
            f"{role.days_left:.1f} days left{mark}"
        )
    names = {release.id: release.version for release in status.releases}
    for name, offer in sorted(status.offers.items()):
        behind = "" if offer.previous is None else f", others {names[offer.previous]}"
        click.echo(
            f"  {name}: {names[offer.release]} to {offer.waves[offer.wave]:g}% of the devices"
            f" (wave {offer.wave + 1} of {len(offer.waves)}){behind}"
        )
    for release in status.releases:
        state = "" if release.revoked is None else f"  REVOKED: {release.revoked}"
        click.echo(f"  release {release.version} {release.id[:12]}{state}")
    for key in status.keys:
        reason = status.revoked_keys.get(key.keyid)
        state = "" if reason is None else f"  REVOKED: {reason}"
        click.echo(f"  key {key.name} {key.keyid[:12]}{state}")
