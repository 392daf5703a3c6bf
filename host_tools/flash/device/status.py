"""What a device says of its slots and of the channel that it follows; reads files alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Optional

from host_tools.flash.device.facts import SLOTS
from host_tools.flash.device.files import Json, text_of

UPDATE_SETTINGS = "etc/edge/update.json"
MACHINE_ID = "etc/machine-id"


def status(root: Path, bundle: str) -> Json:
    """Return what became of a bundle here: the slots, the last pass, the report on its trial.

    bundle: its id. identity: what sorts the device into the waves of a channel.
    """
    slots = root / SLOTS
    return {
        "identity": identity(root),
        "slots": _object(slots / "state.json"),
        "channel": _object(slots / "channel/status.json"),
        "outcome": _newest(slots / "reports", bundle),
    }


def identity(root: Path) -> Optional[str]:
    """Return what `edge-agent update` calls this device, None if it cannot be told."""
    named = (_object(root / UPDATE_SETTINGS) or {}).get("device")
    if named:
        return str(named)
    machine = (text_of(root / MACHINE_ID) or "").strip()
    if not machine:
        return None
    return hashlib.sha256(b"edge-kit channel\n" + machine.encode()).hexdigest()


def _newest(folder: Path, bundle: str) -> Optional[Json]:
    """Return the last report on a bundle: their names are ID.CHANGE.json."""
    found = [
        path for path in folder.glob(bundle[:16] + ".*.json") if path.name.split(".")[1].isdigit()
    ]
    newest = max(found, key=lambda path: int(path.name.split(".")[1]), default=None)
    return None if newest is None else _object(newest)


def _object(path: Path) -> Optional[Json]:
    try:
        told = json.loads(text_of(path) or "null")
    except ValueError:
        return None
    return told if isinstance(told, dict) else None
