"""Which origin a URL names, and how fast it may be used."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from edge.errors import UsageError
from edge.update.http_origin import HttpOrigin
from edge.update.origin import Body, Clock, FolderOrigin, Origin


class Pace:
    """Slows a download down to a rate; None is as fast as it comes."""

    def __init__(
        self,
        bytes_per_s: int | None,
        *,
        clock: Clock = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate, self._clock, self._sleep = bytes_per_s, clock, sleep
        self._free_at = clock()

    def take(self, count: int) -> None:
        """Wait until count bytes more are within the rate."""
        if self._rate is None:
            return
        now = self._clock()
        if self._free_at > now:
            self._sleep(self._free_at - now)
            now = self._free_at
        self._free_at = now + count / self._rate


class PacedOrigin:
    """An Origin no faster than a Pace allows, over all its files together."""

    def __init__(self, origin: Origin, pace: Pace) -> None:
        self._origin, self._pace = origin, pace

    def open(self, path: str, *, offset: int = 0) -> Body | None:
        """Return a file's bytes."""
        body = self._origin.open(path, offset=offset)
        return None if body is None else Body(offset=body.offset, chunks=self._paced(body.chunks))

    def close(self) -> None:
        """Let go of the connection."""
        self._origin.close()

    def _paced(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self._pace.take(len(chunk))
            yield chunk


def origin_from_url(url: str, *, bytes_per_s: int | None = None) -> Origin:
    """Return the origin that a URL or a folder names; raises UsageError for anything else."""
    parts = urlsplit(url)
    origin: Origin
    if parts.scheme in {"http", "https"}:
        origin = HttpOrigin(url)
    elif parts.scheme == "file" and parts.netloc in {"", "localhost"} and parts.path:
        origin = FolderOrigin(Path(unquote(parts.path)))
    elif parts.scheme == "" and url.startswith("/"):
        origin = FolderOrigin(Path(url))
    else:
        raise UsageError(
            f"{url!r} is no place of a channel; write https://HOST/PATH, file:///FOLDER or /FOLDER"
        )
    return PacedOrigin(origin, Pace(bytes_per_s))
