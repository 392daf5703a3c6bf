"""What fails ends what it concerns, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from edge.chat.generator import Generator
from edge.errors import (
    InferenceError,
)
from tests.edge.chat.ears import Ear
from tests.edge.chat.fakes import FakeDecoder, greedy
from tests.edge.chat.generating import Greedy, ask, request, starting


@pytest.fixture
def start() -> Iterator[Callable[..., Generator]]:
    with starting() as start:
        yield start


def test_a_failing_step_ends_its_generations_and_nothing_else(
    start: Callable[..., Generator],
) -> None:
    problems: list[Exception] = []

    def fail() -> None:
        if problems:
            raise problems.pop()

    decoder = FakeDecoder(lanes=2, before_step=fail)
    generator = start(decoder)
    with generator._changed:
        problems.append(ZeroDivisionError("oops"))
        ears = [ask(generator, [number, 2, 3], 4) for number in range(3)]
    # The first step was the prompt of the first one.
    assert ears[0].end.reason == "error"
    assert isinstance(ears[0].end.error, InferenceError)
    assert "ZeroDivisionError: oops" in str(ears[0].end.error)
    for number in (1, 2):
        assert ears[number].end.reason == "length"
        assert ears[number].tokens == greedy([number, 2, 3], 4)
    again = ask(generator, [0, 2, 3, 4], 4)
    assert again.end.reused == 0
    assert generator.is_ready
    assert generator.counters.failed_steps == 1


def test_three_failures_in_a_row_make_it_unready_and_a_success_ready_again(
    start: Callable[..., Generator],
) -> None:
    broken = True

    def fail() -> None:
        if broken:
            raise InferenceError("device lost")

    generator = start(FakeDecoder(before_step=fail))
    ready = []
    for _ in range(3):
        assert str(ask(generator, [1, 2]).end.error) == "device lost"
        ready.append(generator.is_ready)
    assert ready == [True, True, False]
    broken = False
    assert ask(generator, [1, 2]).end.reason == "length"
    assert generator.is_ready


def test_a_failing_sampler_ends_its_generation_and_empties_its_lane(
    start: Callable[..., Generator],
) -> None:
    decoder = FakeDecoder(lanes=2)
    generator = start(decoder)
    with generator._changed:
        bad = ask(generator, [1, 2, 3], 9, sampler=Greedy(fails_at=4))
        good = ask(generator, [4, 5, 6], 9)
    assert (bad.end.reason, str(bad.end.error)) == ("error", "no token may follow")
    assert bad.tokens == greedy([1, 2, 3], 4)
    assert good.end.reason == "length"
    assert good.tokens == greedy([4, 5, 6], 9)
    assert decoder.cleared == [0]
    assert ask(generator, [1, 2, 3, *bad.tokens], 9).end.reused == 0


def test_where_lanes_could_not_be_moved_all_generations_end(
    start: Callable[..., Generator],
) -> None:
    """Nobody knows then what is in any lane."""
    problems = [InferenceError("device lost")]

    def fail() -> None:
        if problems:
            raise problems.pop()

    decoder = FakeDecoder(lanes=3, context=256, before_copy=fail)
    generator = start(decoder)
    prompt = [*range(20)] * 2
    ears: list[Ear] = []

    def ask_the_same(count: int) -> None:
        if count == 3:
            ears.append(ask(generator, prompt, 9))

    first = Ear(ask_the_same)
    generator.submit(request(prompt, 100), first)
    assert str(first.end.error) == "device lost"
    assert str(ears[0].end.error) == "device lost"
    assert sorted(decoder.cleared) == [0, 1, 2]
    again = ask(generator, prompt, 9)
    assert (again.end.reused, again.tokens) == (0, greedy(prompt, 9))


def test_a_failing_listener_loses_its_generation_and_nothing_else(
    start: Callable[..., Generator],
) -> None:
    def fail(count: int) -> None:
        raise ZeroDivisionError("oops")

    generator = start(FakeDecoder(lanes=1))
    deaf = Ear(fail)
    generator.submit(request([1, 2]), deaf)
    assert deaf.end.reason == "error"
    assert ask(generator, [1, 2]).end.reason == "length"
