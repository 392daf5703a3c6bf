from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from calibration.parallel import in_order

DEADLINE_S = 30.0


def test_results_come_in_the_order_of_the_items_whoever_finishes_first() -> None:
    second_done = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert second_done.wait(DEADLINE_S)
        if item == 1:
            second_done.set()
        return item * item

    assert list(in_order(work, range(6), 2)) == [0, 1, 4, 9, 16, 25]


def test_no_more_items_are_read_than_workers_need() -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            read.append(item)
            yield item

    for done, _ in enumerate(in_order(lambda item: item, items(), 3)):
        assert len(read) <= done + 1 + 3


def test_an_error_surfaces_at_its_place_and_stops_the_reading() -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            read.append(item)
            yield item

    def work(item: int) -> int:
        if item == 5:
            raise ValueError("item 5")
        return item

    got = []
    with pytest.raises(ValueError, match="item 5"):
        got.extend(in_order(work, items(), 2))
    assert len(read) < 10
