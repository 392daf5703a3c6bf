"""The note that a setup is under way, and whether a boot may go on with it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Optional

from host_tools.flash.device.files import Json, remove, text_of, write

# Kept beside the payload.
PENDING = "pending"


def note_pending(payload: Path, document: bytes, slots: Json, **flags: bool) -> None:
    """Note what is being set up, with which flags, and what the slots held before."""
    noted = {"payload": hashlib.sha256(document).hexdigest(), "flags": flags, **_seen(slots)}
    write(payload / PENDING, json.dumps(noted, sort_keys=True).encode())


def noted_in(payload: Path) -> Json:
    """Return the note, an empty one if there is none or it cannot be read."""
    try:
        noted = json.loads(text_of(payload / PENDING) or "{}")
    except ValueError:
        return {}
    return noted if isinstance(noted, dict) else {}


def settle(payload: Path) -> None:
    """Forget a setup that ended, for better or worse: the next boot shall not repeat it."""
    remove(payload / PENDING)


def outdated(noted: Json, document: bytes, slots: Json, wanted: str) -> Optional[str]:
    """Return why a boot must not go on with what was noted, None if it may; pure.

    wanted: the id of its bundle, which a cut may have left committed or on trial.
    """
    if noted.get("payload") != hashlib.sha256(document).hexdigest():
        return "what was begun is not what lies here now; run edge-kit flash again"
    now = _seen(slots)
    for name in ("committed", "coming"):
        if now[name] not in (None, wanted, noted.get(name)):
            return "bundle {} came to this device since; it stays".format(now[name][:12])
    if now["committed"] is None and noted.get("committed") is not None:
        return "bundle {} was taken from this device since".format(noted["committed"][:12])
    return None


def tries_again(noted: Json, slots: Json) -> bool:
    """Return whether `--again` still holds: not for what was rolled back since."""
    return bool(noted["flags"].get("again")) and noted.get("changes") == _seen(slots)["changes"]


def _seen(slots: Json) -> Json:
    coming = (slots.get("candidate") or {}).get("slot")
    return {
        "committed": _id_in(slots, slots.get("committed")),
        "coming": _id_in(slots, coming),
        "changes": slots.get("changes"),
    }


def _id_in(slots: Json, slot: Optional[str]) -> Optional[str]:
    bundle = slots.get(slot) if slot else None
    return str(bundle["id"]) if bundle else None
