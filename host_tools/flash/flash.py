"""Flash one device over SSH: look at it, send what it lacks, let it set itself up."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from host_tools.flash.device.facts import PAYLOAD, described, refusal
from host_tools.flash.device.steps import DOCUMENT_NAME
from host_tools.flash.payload import Payload, Source, chunks_of
from host_tools.flash.script import SCRIPT_NAME
from host_tools.flash.ssh import DeviceError, SshDevice
from host_tools.progress import Progress

Json = dict[str, Any]
Say = Callable[[str], None]

# Wheels and manifest, then blobs; one more for a device whose files went away in between.
MAX_ROUNDS = 4
MIB = 1 << 20


def flash(
    device: SshDevice,
    payload: Payload,
    *,
    root: str = "/",
    again: bool = False,
    ignore_doctor: bool = False,
    dry_run: bool = False,
    say: Say = lambda line: None,
    tick: Progress = lambda stage, done, total: None,
) -> Json:
    """Set up a device and return its report: state, changed, steps and, if it said no, reason.

    Whatever is cut, the same call goes on where the last one ended. root: of the system on the
    device. Raises UnreachableError or DeviceError.
    """
    wanted: Json = json.loads(payload.content)
    facts = device.run("facts", "--root", root)
    if "state" in facts:  # it could not look at itself
        raise DeviceError(f"{device.host}: {facts.get('reason')}; can this user read the device?")
    say(f"device: {described(facts)}")
    reason = refusal(facts, wanted)
    if reason is not None:
        return {"state": "refused", "changed": False, "steps": [], "reason": reason}
    device = replace(device, sudo=not facts["root"])
    if dry_run:
        plan = ("apply", "-", "--root", root, "--dry-run")
        return device.run(*plan, stdin=[payload.content], say=say)
    folder = str(PurePosixPath(root) / PAYLOAD)
    if facts["payload"] != hashlib.sha256(payload.content).hexdigest():
        # The list last: whoever finds it finds the script that reads it.
        first = {SCRIPT_NAME: payload.sources[SCRIPT_NAME], DOCUMENT_NAME: payload.content}
        _send(device, folder, first, [_entry(name, first[name]) for name in first], tick)
    words = ["apply", folder, "--root", root]
    words += ["--again"] * again + ["--ignore-doctor"] * ignore_doctor
    rounds: list[Json] = []
    for _ in range(MAX_ROUNDS):
        report = device.run(*words, say=say)
        rounds.append(report)
        if report["state"] != "needs":
            return {**report, **_joined(rounds)}
        needs = report["needs"]
        for file in needs:
            if file["path"] not in payload.sources:
                raise DeviceError(
                    f"{device.host} asks for {file['path']!r}, which is no file of it"
                )
        say(f"send: {len(needs)} files, {_size(needs) / MIB:.1f} MiB")
        _send(device, folder, payload.sources, needs, tick)
    raise DeviceError(f"{device.host} still lacks files after {MAX_ROUNDS} rounds: {needs[0]}")


def _joined(rounds: Sequence[Json]) -> Json:
    """Return the steps of all rounds: changed is what one of them has changed."""
    steps: dict[str, Json] = {}
    for step in (step for report in rounds for step in report.get("steps", ())):
        before = steps.get(step["step"])
        steps[step["step"]] = before if before is not None and before["changed"] else step
    joined = list(steps.values())
    return {"steps": joined, "changed": any(step["changed"] for step in joined)}


def _send(
    device: SshDevice,
    folder: str,
    sources: Any,
    entries: Sequence[Json],
    tick: Progress,
) -> None:
    """Send files; what was cut before goes on from there."""
    report = device.run("receive", folder, stdin=_stream(sources, entries, tick))
    if report["state"] != "received":
        raise DeviceError(f"{device.host}: {report['reason']}; run the same command again")


def _stream(sources: Any, entries: Sequence[Json], tick: Progress) -> Iterator[bytes]:
    sent, total = 0, _size(entries)
    for entry in entries:
        source, offset = sources[entry["path"]], int(entry["received"])
        head = {name: entry[name] for name in ("path", "size", "sha256")}
        yield json.dumps({**head, "offset": offset}).encode() + b"\n"
        for chunk in chunks_of(source, offset=offset):
            yield chunk
            sent += len(chunk)
            tick("send, MiB", sent // MIB, total // MIB)


def _entry(name: str, source: Source) -> Json:
    assert isinstance(source, bytes)  # noqa: S101 - the two files that are made here
    digest = hashlib.sha256(source).hexdigest()
    return {"path": name, "size": len(source), "sha256": digest, "received": 0}


def _size(entries: Sequence[Json]) -> int:
    return sum(entry["size"] - entry["received"] for entry in entries)
