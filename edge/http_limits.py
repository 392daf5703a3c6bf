"""What clients may hold of the server; all of it is counted in the loop's thread."""

from __future__ import annotations

import ipaddress


class Budget:
    """Bytes of bodies that all connections together may hold."""

    def __init__(self, max_bytes: int) -> None:
        self.used = 0
        self._max_bytes = max_bytes

    def take(self, count: int) -> bool:
        """Take bytes if they are left."""
        if self.used + count > self._max_bytes:
            return False
        self.used += count
        return True

    def give_back(self, count: int) -> None:
        """Return what was taken."""
        self.used -= count


class ClientPlaces:
    """So many places for each client; most: None for no limit, and then nothing is counted."""

    def __init__(self, most: int | None) -> None:
        self.most = most
        self.taken: dict[str, int] = {}  # only clients that hold one

    def take(self, client: str) -> bool:
        """Take a place if this client has one left."""
        if self.most is None:
            return True
        taken = self.taken.get(client, 0)
        if taken >= self.most:
            return False
        self.taken[client] = taken + 1
        return True

    def give_back(self, client: str) -> None:
        """Return a place that was taken."""
        if self.most is None:
            return
        left = self.taken[client] - 1
        if left:
            self.taken[client] = left
        else:
            del self.taken[client]


def client_from_address(address: str) -> str:
    """Return what counts as one client.

    That is an IPv4 address, also where IPv6 wraps it, and for IPv6 the network of 64 bits: whoever
    has one address of it has all of them (RFC 6177).
    """
    if ":" not in address:
        return address
    parsed = ipaddress.IPv6Address(address.partition("%")[0])
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))
