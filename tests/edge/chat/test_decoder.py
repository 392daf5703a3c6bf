"""How long a cache is that grows."""

from __future__ import annotations

from edge.chat.decoder import SMALLEST_CAPACITY, capacity_for

CONTEXT = 32768


def test_a_cache_has_room_and_little_more() -> None:
    for length in range(1, CONTEXT + 1):
        capacity = capacity_for(length, CONTEXT)
        assert length <= capacity < max(length + SMALLEST_CAPACITY, 1.25 * length)


def test_sizes_are_few_and_twice_a_size_is_a_size() -> None:
    sizes = {capacity_for(length, CONTEXT) for length in range(1, CONTEXT + 1)}
    assert len(sizes) == 32  # 8 up to 512, 4 to each of six doublings
    assert all(capacity_for(size, CONTEXT) == size for size in sizes)
    assert {2 * size for size in sizes if 2 * size <= CONTEXT} <= sizes


def test_a_cache_is_never_longer_than_the_context() -> None:
    assert capacity_for(5, 50) == 50
    assert capacity_for(900, 1000) == 1000
    assert capacity_for(4 * 1000, 1000) == 1000
