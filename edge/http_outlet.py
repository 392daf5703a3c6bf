"""The way out of a connection: what is written to a client, and what it takes of that."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

# Below it a copy costs less than what a second buffer costs the socket.
MAX_JOINED_BYTES = 1 << 16
_RESET_AT_ONCE = struct.pack("ii", 1, 0)  # struct linger: on, for 0 seconds


class Outlet:
    """Writes to a transport. Lives in the loop's thread."""

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._transport = transport
        self._written = 0
        self._taken = 0  # by the client's side, when last looked
        self._moved = loop.time()

    @property
    def unsent_bytes(self) -> int:
        """What waits for the client to read."""
        size: int = self._transport.get_write_buffer_size()
        return size

    def write(self, content: bytes) -> None:
        """Write bytes."""
        self._written += len(content)
        self._transport.write(content)

    def write_both(self, head: bytes, body: bytes) -> None:
        """Write two pieces in one go, without copying a large body."""
        if len(body) < MAX_JOINED_BYTES:
            self.write(head + body)
        else:
            self._written += len(head) + len(body)
            self._transport.writelines([head, body])

    def has_moved(self, now: float) -> bool:
        """Return whether the client took anything since this was asked last."""
        unsent = self.unsent_bytes
        before, self._taken = self._taken, self._written - unsent
        if self._taken != before or not unsent:
            self._moved = now
        return self._taken != before

    def stalled_s(self, now: float) -> float:
        """Return for how long the client has taken nothing of what waits, as `has_moved` saw it."""
        return now - self._moved

    def abort(self) -> None:
        """Close at once; what waits is lost."""
        self._transport.abort()

    def reset(self) -> None:
        """Close at once in a way that the client cannot take for an end: with a reset."""
        sock = self._transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_ONCE)
        self._transport.abort()

    def close(self) -> None:
        """Close after what waits."""
        self._transport.close()
