"""Which channel a device follows: a small file that the updater alone reads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from edge.errors import ConfigError
from edge.manifest import is_plain_name

DEFAULT_SETTINGS_FILE = Path("/etc/edge/update.json")
MACHINE_ID = Path("/etc/machine-id")


class UpdateSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of update.json, each key of which is a flag as well.

    channel: address or folder. channel_root: the root.json that the device trusts from the start.
    follow: name of what it follows in the channel. device: sorts it into waves; default: a digest
    of /etc/machine-id. bytes_per_s: how fast it may download; default: no limit.
    """

    channel: str | None = None
    channel_root: str = "/etc/edge/channel-root.json"
    follow: str = "stable"
    device: str | None = None
    bytes_per_s: Annotated[int, msgspec.Meta(ge=1024)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """The settings with nothing left open."""

    channel: str
    channel_root: Path
    follow: str
    device: str
    bytes_per_s: int | None


def followed(
    flags: Mapping[str, object],
    path: Path,
    read_file: Callable[[Path], bytes | None],
) -> Followed:
    """Return what flags and file say together, flags first; raises ConfigError naming the place."""
    content = read_file(path)
    try:
        settings = msgspec.json.decode(content or b"{}", type=UpdateSettings)
        given = {key: value for key, value in flags.items() if value is not None}
        merged = msgspec.convert({**msgspec.to_builtins(settings), **given}, UpdateSettings)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}, or the flags over it: {error}") from error
    if merged.channel is None:
        raise ConfigError(
            f'no channel to follow; write {{"channel": "https://HOST/PATH"}} to {path}, or give '
            "--channel"
        )
    if not is_plain_name(merged.follow):
        raise ConfigError(f"follow {merged.follow!r} is no name of a channel")
    return Followed(
        channel=merged.channel,
        channel_root=Path(merged.channel_root),
        follow=merged.follow,
        device=merged.device or _identity(read_file),
        bytes_per_s=merged.bytes_per_s,
    )


def _identity(read_file: Callable[[Path], bytes | None]) -> str:
    # systemd asks that the id itself is not handed around; it may end up in reports.
    content = read_file(MACHINE_ID)
    if not content or not content.strip():
        raise ConfigError(f"{MACHINE_ID} is missing or empty; give the device an id with --device")
    return hashlib.sha256(b"edge-kit channel\n" + content.strip()).hexdigest()
