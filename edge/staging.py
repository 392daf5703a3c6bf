"""Host arrays in and out of pinned memory, without the copies becoming the bottleneck.

One core copies about 12 GB/s, a GPU takes 50: a large array is copied in chunks by a few threads
(numpy lets go of the interpreter lock), and each chunk travels while the next is being copied.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge.spec import AnyArray

LARGE_BYTES = 1 << 20
CHUNK_BYTES = 1 << 20
MAX_THREADS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """One tensor: pinned host memory in its shape, and the device memory it is a copy of.

    threads: of the session that owns the memory. cuda: the module pycuda.driver.
    """

    host: AnyArray
    device: Any
    cuda: Any
    threads: ThreadPoolExecutor

    @property
    def is_large(self) -> bool:
        """Whether it is worth more than one thread, and travels in chunks."""
        return self.host.nbytes >= LARGE_BYTES

    def fill(self, feed: AnyArray, stream: Any) -> None:
        """Copy a feed into the pinned memory; a large one is also sent to the device."""
        if not self.is_large:
            np.copyto(self.host, feed, casting="same_kind")
            return
        target, source = self.host.reshape(-1), np.ascontiguousarray(feed).reshape(-1)
        for part in self._copied(target, source):
            start = int(self.device) + part.start * target.itemsize
            self.cuda.memcpy_htod_async(start, target[part], stream)

    def copied_as(self, dtype: np.dtype[Any]) -> AnyArray:
        """Return the pinned memory as a new array of the caller."""
        if not self.is_large:
            return self.host.astype(dtype)
        copy = np.empty(self.host.shape, dtype)
        for _ in self._copied(copy.reshape(-1), self.host.reshape(-1)):
            pass
        return copy

    def _copied(self, target: AnyArray, source: AnyArray) -> Iterator[slice]:
        """Copy source to target, both flat, and yield each part in order once it is there."""
        step = max(1, CHUNK_BYTES // target.itemsize)
        parts = [slice(i, min(i + step, target.size)) for i in range(0, target.size, step)]

        def copy(part: slice) -> slice:
            np.copyto(target[part], source[part], casting="same_kind")
            return part

        yield from self.threads.map(copy, parts)


def staging_threads() -> ThreadPoolExecutor:
    """Return threads for the copies of one session; they start when the first large array comes."""
    count = min(MAX_THREADS, len(os.sched_getaffinity(0)))
    return ThreadPoolExecutor(count, thread_name_prefix="staging")
