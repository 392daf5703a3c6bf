"""What the C library does for us, seen from outside."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from edge.libc import FlushedDenormals, return_free_memory

SMALL = np.full(4, 1e-30, np.float32)
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="of the GNU C library")


def product() -> float:
    """Return a number that only denormals can say: 1e-40."""
    return float((SMALL * np.float32(1e-10))[0])


@on_linux
def test_denormals_are_zero_inside_and_only_there() -> None:
    flushed, seen = FlushedDenormals(), []
    for _ in range(2):
        seen.append(product())
        with flushed:
            seen.append(product())
    with pytest.raises(KeyError), flushed:
        raise KeyError
    seen.append(product())
    assert seen == [pytest.approx(1e-40, rel=1e-3), 0, pytest.approx(1e-40, rel=1e-3), 0, seen[0]]


@on_linux
def test_other_threads_compute_as_before() -> None:
    seen: list[float] = []
    asked, answered = threading.Event(), threading.Event()

    def other() -> None:
        asked.wait(10)
        seen.append(product())
        answered.set()

    thread = threading.Thread(target=other)
    thread.start()
    with FlushedDenormals():
        asked.set()
        assert answered.wait(10)
    thread.join()
    assert seen == [pytest.approx(1e-40, rel=1e-3)]


def test_rounding_and_other_numbers_are_as_ever() -> None:
    values = np.float32([0.1, 1e-37, 3e38, -2.5])
    with FlushedDenormals():
        found = values / np.float32(3)
    np.testing.assert_array_equal(found[[0, 2, 3]], (values / np.float32(3))[[0, 2, 3]])
    assert found[1] == values[1] / np.float32(3)


@on_linux
def test_memory_between_what_is_in_use_goes_back_to_the_system() -> None:
    blocks = [b"x" * 60_000 for _ in range(2000)]  # too small to be mapped one by one
    kept = blocks[::40]
    blocks.clear()
    before = resident_mb()
    return_free_memory()
    assert resident_mb() < before - 80
    assert all(block.count(b"x") == 60_000 for block in kept)


def resident_mb() -> float:
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1e3
