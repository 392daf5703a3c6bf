"""A uniform sample of rows that come one by one, in bounded memory, that survives a restart."""

from __future__ import annotations

import heapq

KEY_BITS = 53
MAX_KEY = 1 << KEY_BITS


class UniformSample:
    """The rows with the smallest of random keys: each row that came is as likely to be among them.

    Every row is given a key at random, 0 <= key < MAX_KEY, and those up to `limit` are in; it
    falls as rows come. Whatever lists the keys that are in can go on with the sample later,
    and two samples of different rows are one of all of them. Source: Cohen and Kaplan 2007,
    "Summarizing Data using Bottom-k Sketches", PODC.
    """

    def __init__(self, *, max_rows: int, max_bytes: int) -> None:
        self.limit = MAX_KEY
        self.bytes = 0
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._heap: list[tuple[int, int]] = []  # (-key, bytes): the largest key first

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, key: int, size: int) -> list[int]:
        """Take a row of so many bytes, and return the keys that are out now; it may be its own."""
        if key > self.limit:
            return [key]
        heapq.heappush(self._heap, (-key, size))
        self.bytes += size
        out = []
        while len(self._heap) > self._max_rows or self.bytes > self._max_bytes:
            out.append(self._pop())
        if len(self._heap) == self._max_rows:
            self.limit = -self._heap[0][0]
        return out

    def lower(self, limit: int) -> list[int]:
        """Keep only what is up to another limit too, and return the keys that are out now."""
        self.limit, out = min(self.limit, limit), []
        while self._heap and -self._heap[0][0] > self.limit:
            out.append(self._pop())
        return out

    def _pop(self) -> int:
        negative, size = heapq.heappop(self._heap)
        self.bytes -= size
        self.limit = min(self.limit, -negative)
        return -negative
