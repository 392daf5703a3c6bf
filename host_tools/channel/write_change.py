"""A change carried out: a line in the channel's log for people, then the files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from host_tools.channel.operations import text_from_time
from host_tools.channel.repository import Change, Repository, changing, read_repository, write
from host_tools.channel.signing import Signers, signers_in
from host_tools.fleet.audit import AuditLog

LOG_NAME = "audit.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What a command did, or would do, to a channel."""

    verb: str
    change: Change
    facts: Mapping[str, object]
    dry_run: bool = False

    def document(self) -> dict[str, object]:
        """Return it for programs."""
        return {
            "verb": self.verb,
            "dry_run": self.dry_run,
            **self.facts,
            "writes": list(self.change.writes),
            "removes": list(self.change.removes),
            "bytes": self.change.bytes_written,
        }

    def summary(self) -> str:
        """Return it in a line for people."""
        facts = ", ".join(f"{k} {v}" for k, v in self.facts.items() if v not in (None, [], ()))
        would = "would write" if self.dry_run else "wrote"
        return (
            f"{self.verb}: {would} {len(self.change.writes)} files, "
            f"{self.change.bytes_written / 1e6:.3f} MB" + (f"; {facts}" if facts else "")
        )


def make_change(
    folder: Path,
    keys: Sequence[Path],
    plan: Callable[[Repository, Signers], Done],
    *,
    now: datetime,
    user: str,
    dry_run: bool = False,
) -> Done:
    """Plan a change with the private keys in folders, and carry it out while nobody else does.

    A dry run takes no lock: it leaves no file.
    """
    read_repository(folder)  # says what is wrong before anything is locked
    with contextlib.nullcontext() if dry_run else changing(folder):
        done = plan(read_repository(folder), signers_in(keys))
        return carry_out(folder, done, now=now, user=user, dry_run=dry_run)


def carry_out(folder: Path, done: Done, *, now: datetime, user: str, dry_run: bool) -> Done:
    """Write the change unless this is a dry run, and return what was done.

    Its line in the log comes first: no change is without one, whenever its maker is stopped. It
    holds the digest of the line before, and a log that was altered is not gone on with: AuditError.
    """
    if dry_run:
        return replace(done, dry_run=True)
    log = AuditLog(folder / LOG_NAME, who=user, now=lambda: text_from_time(now))
    log.append(done.verb, done.facts)
    write(folder, done.change)
    return done
