import threading

import pytest

from edge.errors import QueueFullError
from edge.places import Places
from tests.fakes import DEADLINE_S


def test_places_are_bounded_and_come_back() -> None:
    places = Places("m", 2)
    assert places.take()
    assert places.take()
    with pytest.raises(QueueFullError, match="2 requests for model 'm'"):
        places.take()
    places.give_back()
    assert places.take()
    assert places.taken == 2


def test_closing_lets_nobody_in_and_waits_for_those_inside() -> None:
    places = Places("m", 2)
    places.take()
    assert not places.close(0.0)
    assert not places.take()
    closed: list[bool] = []
    thread = threading.Thread(target=lambda: closed.append(places.close(DEADLINE_S)))
    thread.start()
    places.give_back()
    thread.join(DEADLINE_S)
    assert closed == [True]
