"""What a device remembers of its channel between two passes, in one small file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from edge.errors import ChannelError
from edge.files import atomic_write, read_capped

MEMORY_NAME = "memory.json"
MAX_MEMORY_BYTES = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """sequence: the largest of the releases that were committed; it counts for targets_keys.

    With other keys it starts anew: whoever stole the old ones could have made it too large to
    ever pass. seen: UTC of the last pass; a clock far behind it is wrong.
    """

    sequence: Annotated[int, msgspec.Meta(ge=0, le=2**53)] = 0
    targets_keys: tuple[str, ...] = ()
    seen: str = ""

    def sequence_for(self, targets_keys: tuple[str, ...]) -> int:
        """Return the largest sequence that was committed under these keys."""
        return self.sequence if targets_keys == self.targets_keys else 0


def read_memory(folder: Path) -> Memory:
    """Return what was remembered; raises ChannelError if the file is damaged."""
    path = folder / MEMORY_NAME
    if not path.exists():
        return Memory()
    try:
        content = read_capped(path, max_bytes=MAX_MEMORY_BYTES)
        return msgspec.json.decode(content, type=Memory)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ChannelError(
            f"{path} is damaged ({error}); it guards against older releases: remove it only if "
            "you know which release the device should have"
        ) from error


def write_memory(folder: Path, memory: Memory) -> None:
    """Remember; nothing is written if nothing changed."""
    path, content = folder / MEMORY_NAME, msgspec.json.encode(memory, order="sorted")
    if not path.exists() or read_capped(path, max_bytes=MAX_MEMORY_BYTES) != content:
        atomic_write(path, content)
