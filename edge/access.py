"""What no browser may be lured into: requests in the name of another site, or under its name.

Every request passes here before anything else is done for it. A page of another site may send
requests from a browser that reaches the agent: it says so in Origin and Sec-Fetch-Site. And a name
of that site may be made to lead here (DNS rebinding): then Host is that name, and none of ours.
Sources: RFC 9110, 7.2 and 7.4 (Host, misdirected requests); the Fetch standard, 3.2 (Origin);
W3C Fetch Metadata Request Headers, 2.2.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edge.errors import StorageError
from edge.files import read_capped
from edge.http_answer import HttpAnswer, json_error

MAX_RESOLV_CONF_BYTES = 64 << 10
# They change nothing, and no other site can read their answers.
SAFE_METHODS = {"GET", "HEAD"}
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")
_OWN_SITES = {"same-origin", "none"}
_MAX_SHOWN = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What is refused whoever asks. names: host names of this machine, in lower case."""

    names: frozenset[str] = frozenset({"localhost"})

    @classmethod
    def of_machine(
        cls, hostname: str, further: Iterable[str] = (), *, domains: Iterable[str] = ()
    ) -> Access:
        """Return the rules for a machine: its name, alone and in its domains, and further ones."""
        short = hostname.partition(".")[0]
        names = {"localhost", hostname, short, *further}
        names.update(f"{short}.{domain}" for domain in ("local", *domains))
        return cls(names=frozenset(name.strip().rstrip(".").lower() for name in names) - {""})

    def refusal(self, method: str, headers: Mapping[bytes, bytes]) -> HttpAnswer | None:
        """Return why a request with these headers is refused; None if it is not.

        headers: by name in lower case. Who sends no Host is no browser.
        """
        authority = _text(headers.get(b"host", b""))
        if not authority:
            return self._crossing(method, headers, authority)
        if _AUTHORITY.fullmatch(authority) is None:
            return json_error(400, "Bad Request: Host must name one host, once")
        name = _name_of(authority)
        if name not in self.names and not _is_address(name):
            return json_error(
                421,
                f"Misdirected Request: this agent is not {_shown(name)}; use its address, or add "
                "the name to allowed_hosts",
            )
        return self._crossing(method, headers, authority)

    def _crossing(
        self, method: str, headers: Mapping[bytes, bytes], authority: str
    ) -> HttpAnswer | None:
        """Return the refusal of a request that a page of another site made a browser send."""
        if method in SAFE_METHODS:
            return None
        site = _text(headers.get(b"sec-fetch-site", b"none"))
        origin = headers.get(b"origin")
        is_own = origin is None or _text(origin).partition("://")[2].lower() == authority.lower()
        if site in _OWN_SITES and is_own:
            return None
        who = "another site" if origin is None else _shown(_text(origin))
        return json_error(403, f"Forbidden: a page of {who} asked for this in a browser")


def search_domains(resolv_conf: Path = Path("/etc/resolv.conf")) -> tuple[str, ...]:
    """Return the domains in which this machine looks for names, as resolv.conf(5) has them."""
    try:
        lines = read_capped(resolv_conf, max_bytes=MAX_RESOLV_CONF_BYTES, follow_links=True)
    except StorageError:
        return ()
    words = (line.split() for line in lines.decode("utf-8", "replace").splitlines())
    return tuple(
        name for line in words if line[:1] in (["search"], ["domain"]) for name in line[1:]
    )


def _name_of(authority: str) -> str:
    name = authority if authority.endswith("]") else authority.rpartition(":")[0] or authority
    return name.strip("[]").rstrip(".").lower()


def _is_address(name: str) -> bool:
    """Return whether a name is an address: nobody can make one lead elsewhere."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _text(value: bytes) -> str:
    return value.decode("latin-1").strip()


def _shown(text: str) -> str:
    return repr(text[:_MAX_SHOWN])
