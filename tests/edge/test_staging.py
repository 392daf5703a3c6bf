from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from edge.staging import LARGE_BYTES, Staged

DEVICE_ADDRESS = 1 << 40
SMALL, LARGE = (3, 640), (3000, 640)


@dataclass
class FakeCuda:
    """Device memory as bytes: what was sent lands where it was addressed."""

    memory: bytearray = field(default_factory=lambda: bytearray(8 * LARGE_BYTES))
    copies: int = 0

    def memcpy_htod_async(self, address: int, array: np.ndarray, stream: object) -> None:
        assert array.flags.c_contiguous
        start = address - DEVICE_ADDRESS
        self.memory[start : start + array.nbytes] = array.tobytes()
        self.copies += 1

    def memcpy_dtoh_async(self, array: np.ndarray, address: int, stream: FakeStream) -> None:
        def copy() -> None:
            found = np.frombuffer(self.memory, array.dtype, array.size, address - DEVICE_ADDRESS)
            array[...] = found.reshape(array.shape)

        stream.work.append(copy)
        self.copies += 1


@dataclass
class FakeStream:
    """Does its work when somebody waits for it, as late as a real one may."""

    work: list[Callable[[], None]] = field(default_factory=list)

    def synchronize(self) -> None:
        for copy in self.work:
            copy()
        self.work.clear()


def staged(shape: tuple[int, ...], cuda: FakeCuda) -> Staged:
    dtype = np.dtype(np.int32)
    host = np.zeros(shape, dtype) if shape == SMALL else None
    return Staged(shape=shape, dtype=dtype, host=host, device=DEVICE_ADDRESS, cuda=cuda)


@pytest.mark.parametrize("shape", [SMALL, LARGE])
@pytest.mark.parametrize("dtype", [np.int64, np.int32])
@pytest.mark.parametrize("step", [1, 2])
def test_a_feed_arrives_whole_converted_and_in_order(
    shape: tuple[int, ...], dtype: type, step: int
) -> None:
    cuda = FakeCuda()
    wide = np.random.default_rng(0).integers(-9, 9, (shape[0], step * shape[1])).astype(dtype)
    feed = wide[:, ::step]
    tensor = staged(shape, cuda)
    tensor.fill(feed, stream=None)
    assert cuda.copies == (shape == LARGE)  # a small one waits for the run
    tensor.send(stream=None)
    assert cuda.copies == 1
    assert cuda.memory[: feed.size * 4] == feed.astype(np.int32).tobytes()


@pytest.mark.parametrize("shape", [SMALL, LARGE])
@pytest.mark.parametrize("dtype", [np.int64, np.int32])
def test_an_answer_belongs_to_the_caller(shape: tuple[int, ...], dtype: type) -> None:
    cuda = FakeCuda()
    expected = np.random.default_rng(1).integers(-9, 9, shape).astype(np.int32)
    cuda.memory[: expected.nbytes] = expected.tobytes()
    tensor = staged(shape, cuda)
    stream = FakeStream()
    tensor.fetch(stream)
    stream.synchronize()
    answer = tensor.copied_as(np.dtype(dtype), stream)
    assert cuda.copies == 1
    assert answer.dtype == dtype
    cuda.memory[:] = bytes(len(cuda.memory))
    if tensor.host is not None:
        tensor.host[...] = 0
    np.testing.assert_array_equal(answer, expected)
