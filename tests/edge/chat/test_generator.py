"""The thread, its samplers and listeners, on a decoder where any mix-up gives another token."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from edge.chat.generator import Generator, GeneratorOptions
from edge.chat.scheduler import SchedulerOptions
from edge.errors import (
    ContextLengthError,
    InputError,
    ModelError,
    NotReadyError,
    QueueFullError,
)
from tests.edge.chat.ears import Ear
from tests.edge.chat.fakes import FakeDecoder, greedy
from tests.edge.chat.generating import Greedy, Letters, ask, letters, request, starting
from tests.fakes import DEADLINE_S, FakeClock, Gate


@pytest.fixture
def start() -> Iterator[Callable[..., Generator]]:
    with starting() as start:
        yield start


def test_a_generation_gives_its_tokens_and_its_end(start: Callable[..., Generator]) -> None:
    ear = ask(start(FakeDecoder()), [1, 2, 3], 5)
    assert (ear.end.reason, ear.end.prompt, ear.end.generated, ear.end.reused) == (
        "length",
        3,
        5,
        0,
    )
    assert ear.tokens == greedy([1, 2, 3], 5)


@pytest.mark.parametrize("draft_tokens", [0, 4])
def test_conversations_at_once_get_what_each_gets_alone(
    start: Callable[..., Generator], draft_tokens: int
) -> None:
    generator = start(
        FakeDecoder(lanes=3, context=256),
        draft_tokens=draft_tokens,
        draft_lanes=3,
        scheduler=SchedulerOptions(chunk=8, shared_chunk=4),
    )
    prompts = [[number % 5] * (1 + 3 * number) for number in range(24)]
    ears = [ask(generator, prompt, 20 + len(prompt)) for prompt in prompts]
    for prompt, ear in zip(prompts, ears, strict=True):
        assert ear.end.reason == "length"
        assert ear.tokens == greedy(prompt, 20 + len(prompt))
    assert (generator.counters.accepted > 0) == (draft_tokens > 0)


def test_the_second_turn_runs_only_what_is_new(start: Callable[..., Generator]) -> None:
    decoder = FakeDecoder(lanes=2, context=256)
    generator = start(decoder)
    prompt = [*range(20)] * 5
    answer = ask(generator, prompt, 10)
    assert answer.end.reused == 0
    assert decoder.run == 100 + 9
    second = prompt + answer.tokens + [7, 8, 9]
    again = ask(generator, second, 10)
    # The last token of the first answer was never run.
    assert again.end.reused == 109
    assert decoder.run == 109 + (1 + 3) + 9
    assert again.tokens == greedy(second, 10)
    assert (generator.counters.prefix_hits, generator.counters.reused_tokens) == (1, 109)


def test_a_token_that_ends_the_answer_is_not_given(start: Callable[..., Generator]) -> None:
    expected = greedy([1, 2, 3], 9)
    eos = expected[4]
    assert eos not in expected[:4]
    generator = start(FakeDecoder(eos=(eos,)))
    ear = ask(generator, [1, 2, 3], 9, text=Letters())
    assert (ear.end.reason, ear.end.generated, ear.end.stopped_by) == ("stop", 5, None)
    assert (ear.tokens, ear.text) == (expected[:4], letters(expected[:4]))
    ear = ask(generator, [1, 2, 3], 9, ignores_eos=True)
    assert ear.end.reason == "length"
    assert ear.tokens == expected


def test_a_stop_string_ends_the_answer_and_what_is_held_back_is_given_otherwise(
    start: Callable[..., Generator],
) -> None:
    expected = letters(greedy([1, 2, 3], 9))
    generator = start(FakeDecoder())
    ear = ask(generator, [1, 2, 3], 9, text=Letters())
    assert (ear.end.reason, ear.text) == ("length", expected)
    ear = ask(generator, [1, 2, 3], 9, text=Letters(stop=expected[4]))
    assert (ear.end.reason, ear.end.stopped_by, ear.text) == ("stop", expected[4], expected[:4])


def test_the_context_is_the_longest_a_prompt_and_its_answer_get(
    start: Callable[..., Generator],
) -> None:
    generator = start(FakeDecoder(context=32))
    ear = ask(generator, [1] * 20, None)
    assert (ear.end.reason, ear.end.generated) == ("length", 12)
    assert ear.tokens == greedy([1] * 20, 12)
    assert ask(generator, [1] * 31, 100).end.generated == 1
    with pytest.raises(ContextLengthError, match=r"has 32 tokens, and .* may have 32; shorten"):
        ask(generator, [1] * 32)


@pytest.mark.parametrize(
    ("prompt", "count", "message"),
    [
        ([], 1, "the prompt has no tokens"),
        ([1], 0, "max_tokens is 0"),
        ([1, 29], 1, "has token 29, the model has tokens 0..28"),
        ([1, -1], 1, "has token -1"),
    ],
)
def test_a_bad_request_is_refused_before_it_waits(
    start: Callable[..., Generator], prompt: list[int], count: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ask(start(FakeDecoder()), prompt, count)


def test_a_cancelled_generation_frees_its_lane_within_a_step(
    start: Callable[..., Generator],
) -> None:
    decoder = FakeDecoder(lanes=1, context=1024)
    generator = start(decoder)
    steps: list[int] = []

    def cancel_at_third(count: int) -> None:
        if count == 3:
            steps.append(decoder.steps)
            generator.cancel(generation)

    gone = Ear(cancel_at_third)
    with generator._changed:  # so that the name is bound before the thread calls
        generation = generator.submit(request([1, 2, 3], 1000), gone)
        other = ask(generator, [4, 5, 6], 1)
    assert (gone.end.reason, gone.end.generated) == ("cancelled", 3)
    assert other.tokens == greedy([4, 5, 6], 1) or other.end
    assert other.end.reason == "length"
    assert decoder.steps == steps[0] + 1
    generator.cancel(generation)
    assert ask(generator, [4, 5, 6], 2).end.reason == "length"
    assert len(gone.ends) == 1


def test_a_waiting_generation_can_be_cancelled(start: Callable[..., Generator]) -> None:
    gate = Gate()
    generator = start(FakeDecoder(lanes=1, before_step=gate))
    first = ask(generator, [1, 2], 3)
    gate.wait_entered()
    waiting = Ear()
    generation = generator.submit(request([3, 4]), waiting)
    last = ask(generator, [5, 6], 3)
    assert generator.ahead(generation) == 0
    generator.cancel(generation)
    gate.open()
    assert (waiting.end.reason, waiting.end.queue_s) == ("cancelled", None)
    assert waiting.tokens == []
    assert (first.end.reason, last.end.reason) == ("length", "length")


def test_a_full_line_refuses_at_once(start: Callable[..., Generator]) -> None:
    gate = Gate()
    generator = start(
        FakeDecoder(lanes=1, before_step=gate), scheduler=SchedulerOptions(max_waiting=1)
    )
    inside = [ask(generator, [1, 2], 3)]
    gate.wait_entered()
    inside.append(ask(generator, [3, 4], 3))
    with pytest.raises(QueueFullError, match="1 sequences run and 1 wait"):
        ask(generator, [5, 6], 3)
    gate.open()
    assert [ear.end.reason for ear in inside] == ["length", "length"]


def test_a_step_asks_for_as_many_logits_as_the_most_demanding_sampler(
    start: Callable[..., Generator],
) -> None:
    for tops in ((1, 3), (1, 3, None)):
        decoder = FakeDecoder(lanes=4)
        generator = start(decoder)
        with generator._changed:
            ears = [
                ask(generator, [n + 1, n + 2], 6, sampler=Greedy(top=top))
                for n, top in enumerate(tops)
            ]
        for number, ear in enumerate(ears):
            assert ear.end.reason == "length"
            assert ear.tokens == greedy([number + 1, number + 2], 6)
        assert set(decoder.tops) <= {1, *tops}
        assert decoder.tops[-1] == tops[-1]  # where all of them run


def test_an_end_tells_how_long_each_part_took(start: Callable[..., Generator]) -> None:
    clock = FakeClock()
    gate = Gate()

    def step() -> None:
        gate()
        clock.advance(0.25)

    generator = start(FakeDecoder(lanes=1, before_step=step), clock)
    first = ask(generator, [1, 2], 1)
    gate.wait_entered()
    second = ask(generator, [3, 4], 3)
    gate.open()
    assert (first.end.queue_s, first.end.first_token_s, first.end.total_s) == (0.0, 0.25, 0.25)
    assert (second.end.queue_s, second.end.first_token_s, second.end.total_s) == (0.25, 0.5, 1.0)
    counters = generator.counters
    assert (counters.between_tokens_s.count, counters.between_tokens_s.sum_s) == (2, 0.5)
    assert (counters.first_token_s.count, counters.first_token_s.sum_s) == (2, 0.75)
    assert (counters.prefill_steps, counters.decode_steps) == (2, 2)
    assert (counters.prompt_tokens, counters.generated_tokens) == (4, 4)
    assert counters.ended == {"stop": 0, "length": 2, "cancelled": 0, "error": 0}


def test_one_thread_owns_the_decoder_from_open_to_close() -> None:
    opened_in: list[int] = []
    decoder = FakeDecoder()

    def open_decoder() -> FakeDecoder:
        opened_in.append(threading.get_ident())
        return decoder

    generator = Generator("fake", open_decoder, options=GeneratorOptions())
    generator.start()
    assert ask(generator, [1, 2]).end.reason == "length"
    assert generator.stop(DEADLINE_S)
    assert decoder.is_closed
    assert decoder.threads == set(opened_in)
    with pytest.raises(NotReadyError, match="'fake' is stopping"):
        ask(generator, [1, 2])


def test_what_opening_raises_reaches_the_caller_of_start() -> None:
    def open_decoder() -> FakeDecoder:
        raise ModelError("no such graph")

    generator = Generator("fake", open_decoder, options=GeneratorOptions())
    with pytest.raises(ModelError, match="no such graph"):
        generator.start()
    assert not generator.is_ready
    assert generator.stop(DEADLINE_S)


def test_stopping_finishes_what_is_inside() -> None:
    gate = Gate()
    generator = Generator(
        "fake", lambda: FakeDecoder(lanes=1, before_step=gate), options=GeneratorOptions()
    )
    generator.start()
    ears = [ask(generator, [number, 2], 3) for number in range(3)]
    gate.wait_entered()
    generator.close()
    gate.open()
    assert generator.stop(DEADLINE_S)
    assert [ear.end.reason for ear in ears] == ["length"] * 3


def test_what_is_not_done_when_the_time_to_stop_is_over_ends_with_an_error() -> None:
    gate = Gate()
    generator = Generator(
        "fake", lambda: FakeDecoder(lanes=1, before_step=gate), options=GeneratorOptions()
    )
    generator.start()
    ears = [ask(generator, [number, 2], 3) for number in range(2)]
    gate.wait_entered()
    opener = threading.Thread(target=lambda: (wait_for_abort(generator), gate.open()))
    opener.start()
    assert generator.stop(0.0)
    opener.join(DEADLINE_S)
    for ear in ears:
        assert isinstance(ear.end.error, NotReadyError)


def wait_for_abort(generator: Generator) -> None:
    pause = threading.Event()
    for _ in range(int(DEADLINE_S * 1000)):
        if generator._is_aborted:
            return
        pause.wait(0.001)
    raise AssertionError("it was never told to give up")


def test_a_step_longer_than_the_stall_timeout_is_a_stall(start: Callable[..., Generator]) -> None:
    clock, gate = FakeClock(), Gate()
    generator = start(FakeDecoder(before_step=gate), clock, stall_timeout_s=10.0)
    ear = ask(generator, [1, 2], 1)
    gate.wait_entered()
    assert not generator.is_stalled(clock.now + 10.0)
    assert generator.is_stalled(clock.now + 10.1)
    gate.open()
    assert ear.end.reason == "length"
    assert not generator.is_stalled(clock.now + 1000.0)


def test_use_of_lanes_and_cache_can_be_read_while_it_runs(start: Callable[..., Generator]) -> None:
    gate = Gate(holds=False)
    generator = start(FakeDecoder(lanes=2, context=64, before_step=gate))
    assert (generator.running, generator.waiting, generator.cache_use) == (0, 0, 0.0)
    seen: list[tuple[int, int, float]] = []

    def look(count: int) -> None:
        seen.append((generator.running, generator.waiting, generator.cache_use))

    ear = Ear(look)
    generator.submit(request([1, 2, 3, 4], 3), ear)
    assert ear.end.reason == "length"
    assert seen == [(1, 0, 4 / 128), (1, 0, 5 / 128), (0, 0, 0.0)]


def test_listeners_are_flushed_once_a_step(start: Callable[..., Generator]) -> None:
    decoder = FakeDecoder(lanes=2)
    generator = start(decoder)
    flushed: list[int] = []
    generator.flush = lambda: flushed.append(decoder.steps)
    with generator._changed:
        ears = [ask(generator, [number, 2], 4) for number in range(2)]
    assert [ear.end.reason for ear in ears] == ["length", "length"]
    assert generator.stop(DEADLINE_S)
    assert set(flushed) == set(range(1, decoder.steps + 1))


def test_64_clients_on_4_lanes_all_get_their_answers(start: Callable[..., Generator]) -> None:
    generator = start(FakeDecoder(lanes=4, context=128))
    prompts = [[number % 29, number // 29, *[3] * (number % 7)] for number in range(64)]
    ears = [ask(generator, prompt, 10) for prompt in prompts]
    for prompt, ear in zip(prompts, ears, strict=True):
        assert ear.end.reason == "length"
        assert ear.tokens == greedy(prompt, 10)
