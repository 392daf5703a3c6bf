"""A change carried out: a line in the channel's log for people, then the files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import msgspec

from edge.files import storage_errors
from host_tools.channel.operations import text_from_time
from host_tools.channel.repository import Change, Repository, changing, read_repository, write
from host_tools.channel.signing import Signers, signers_in

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

    Its line in the log comes first: no change is without one, whenever its maker is stopped.
    """
    if dry_run:
        return replace(done, dry_run=True)
    line = {"at": text_from_time(now), "by": user, "verb": done.verb, **done.facts}
    path = folder / LOG_NAME
    with storage_errors("append to", path), path.open("ab") as file:
        file.write(msgspec.json.encode(line, order="sorted") + b"\n")
        file.flush()
        os.fsync(file.fileno())
    write(folder, done.change)
    return done
