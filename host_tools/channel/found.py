"""A new channel: its keys and its first metadata."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from edge.errors import StorageError, UsageError
from edge.files import storage_errors
from host_tools.channel.operations import (
    DEFAULT_DAYS,
    Founding,
    bundle_key_from_file,
    founded,
)
from host_tools.channel.signing import RoleKeys, public_key, signers_in
from host_tools.channel.write_change import Done, carry_out
from host_tools.keys import generate_keys
from host_tools.terminal import user_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What `channel init` is asked for. days: ROLE=DAYS each."""

    product: str
    keys: Path
    bundle_keys: tuple[Path, ...] = ()
    root_keys: int = 3
    root_threshold: int = 2
    targets_keys: int = 1
    targets_threshold: int = 1
    days: tuple[str, ...] = ()


def found(folder: Path, wishes: Wishes, *, now: datetime, dry_run: bool) -> Done:
    """Make the keys and the channel; a dry run makes both in a scratch folder and drops them.

    Raises StorageError if the folder holds something, or a key exists: none is overwritten.
    """
    with storage_errors("read", folder):
        if folder.exists() and any(folder.iterdir()):
            raise StorageError(f"{folder} is not empty; give a new folder")
    days = _days(wishes.days)
    bundle_keys = tuple(bundle_key_from_file(path) for path in wishes.bundle_keys)
    counts = {
        "root": wishes.root_keys,
        "targets": wishes.targets_keys,
        "snapshot": 1,
        "timestamp": 1,
    }
    thresholds = {**dict.fromkeys(counts, 1), "root": wishes.root_threshold}
    thresholds["targets"] = wishes.targets_threshold
    for role, count in counts.items():
        if thresholds[role] > count:
            raise UsageError(f"{role}: {thresholds[role]} of {count} keys can never sign")
    with tempfile.TemporaryDirectory() as scratch:
        key_folder = Path(scratch) if dry_run else wishes.keys
        roles = {
            role: _made_keys(role, count, thresholds[role], key_folder)
            for role, count in counts.items()
        }
        founding = Founding(product=wishes.product, roles=roles, bundle_keys=bundle_keys, days=days)
        change = founded(founding, signers_in([key_folder]), now)
    if not dry_run:
        with storage_errors("create", folder):
            folder.mkdir(parents=True, exist_ok=True)
    done = Done(
        verb="init", change=change, facts={"product": wishes.product, "keys": str(wishes.keys)}
    )
    return carry_out(folder, done, now=now, user=user_name(), dry_run=dry_run)


def _made_keys(role: str, count: int, threshold: int, folder: Path) -> RoleKeys:
    names = [role] if count == 1 else [f"{role}-{n + 1}" for n in range(count)]
    keys = tuple(public_key(generate_keys(name, folder)[1]) for name in names)
    return RoleKeys(keys=keys, threshold=threshold)


def _days(texts: tuple[str, ...]) -> Mapping[str, int]:
    days = dict(DEFAULT_DAYS)
    for text in texts:
        role, _, number = text.partition("=")
        if role not in days or not number.isdigit() or int(number) < 1:
            raise UsageError(f"--days {text!r}: write ROLE=DAYS with one of {', '.join(days)}")
        days[role] = int(number)
    return days
