from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pytest

from edge.staging import LARGE_BYTES, Staged, staging_threads

DEVICE_ADDRESS = 1 << 40


@dataclass
class FakeCuda:
    """Device memory as bytes: what was sent lands where it was addressed."""

    memory: bytearray = field(default_factory=lambda: bytearray(8 * LARGE_BYTES))
    sent: list[int] = field(default_factory=list)

    def memcpy_htod_async(self, address: int, array: np.ndarray, stream: object) -> None:
        start = address - DEVICE_ADDRESS
        self.memory[start : start + array.nbytes] = array.tobytes()
        self.sent.append(array.nbytes)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    pool = staging_threads()
    yield pool
    pool.shutdown()


def staged(
    shape: tuple[int, ...], dtype: type, cuda: FakeCuda, threads: ThreadPoolExecutor
) -> Staged:
    return Staged(host=np.zeros(shape, dtype), device=DEVICE_ADDRESS, cuda=cuda, threads=threads)


@pytest.mark.parametrize("rows", [1, 700, 3000])
@pytest.mark.parametrize("dtype", [np.int64, np.int32])
def test_a_feed_arrives_whole_and_converted(
    threads: ThreadPoolExecutor, rows: int, dtype: type
) -> None:
    cuda = FakeCuda()
    feed = np.random.default_rng(0).integers(-9, 9, (rows, 640)).astype(dtype)
    tensor = staged(feed.shape, np.int32, cuda, threads)
    tensor.fill(feed, stream=None)
    np.testing.assert_array_equal(tensor.host, feed)
    assert tensor.is_large == (tensor.host.nbytes >= LARGE_BYTES)
    if tensor.is_large:  # a small one is sent with the run
        assert len(cuda.sent) > 1
        assert cuda.memory[: tensor.host.nbytes] == tensor.host.tobytes()
    else:
        assert cuda.sent == []


def test_a_large_strided_feed_arrives_in_order(threads: ThreadPoolExecutor) -> None:
    cuda = FakeCuda()
    feed = np.arange(2 * LARGE_BYTES, dtype=np.float32).reshape(1024, -1)[:, ::2]
    tensor = staged(feed.shape, np.float32, cuda, threads)
    tensor.fill(feed, stream=None)
    assert cuda.memory[: feed.nbytes] == feed.tobytes()


@pytest.mark.parametrize("rows", [3, 3000])
def test_an_answer_belongs_to_the_caller(threads: ThreadPoolExecutor, rows: int) -> None:
    tensor = staged((rows, 640), np.int32, FakeCuda(), threads)
    tensor.host[...] = np.random.default_rng(1).integers(-9, 9, (rows, 640))
    answer = tensor.copied_as(np.dtype(np.int64))
    assert answer.dtype == np.int64
    np.testing.assert_array_equal(answer, tensor.host)
    kept = answer.copy()
    tensor.host[...] = 0
    np.testing.assert_array_equal(answer, kept)
