"""Host arrays on their way to and from the device.

A small one passes through pinned memory, so that its copy can be part of a CUDA graph. A large
one travels straight from or to an array of the caller: the driver stages it, copying one chunk
while another travels, and was faster at it than threads of ours (see BENCHMARKS.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edge.spec import AnyArray

LARGE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """One tensor on the device, and how an array of the host gets there or back.

    host: pinned memory in its shape, None if the tensor is large. device: its device memory.
    cuda: the module pycuda.driver.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    host: AnyArray | None
    device: Any
    cuda: Any

    @property
    def is_large(self) -> bool:
        """Whether it travels by itself, and not as a part of the stream."""
        return self.host is None

    def fill(self, feed: AnyArray, stream: Any) -> None:
        """Copy a feed into the pinned memory; a large one goes to the device at once."""
        if self.host is not None:
            np.copyto(self.host, feed, casting="same_kind")
            return
        # The driver has read an array in pageable memory when this returns.
        self.cuda.memcpy_htod_async(self.device, np.ascontiguousarray(feed, self.dtype), stream)

    def send(self, stream: Any) -> None:
        """Put the copy of the pinned memory to the device on the stream; nothing if large."""
        if self.host is not None:
            self.cuda.memcpy_htod_async(self.device, self.host, stream)

    def fetch(self, stream: Any) -> None:
        """Put the copy of the device's memory to the pinned one on the stream; nothing if large."""
        if self.host is not None:
            self.cuda.memcpy_dtoh_async(self.host, self.device, stream)

    def copied_as(self, dtype: np.dtype[Any], stream: Any) -> AnyArray:
        """Return what a finished run left here, as a new array of the caller.

        stream: for what is large; not that of the runs, or it waits for those behind.
        """
        if self.host is not None:
            return self.host.astype(dtype)
        answer = np.empty(self.shape, self.dtype)
        self.cuda.memcpy_dtoh_async(answer, self.device, stream)
        stream.synchronize()
        return answer.astype(dtype, copy=False)
