"""The scheduler against a model that keeps lists and computes every token from the whole list."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge.chat.scheduler import Scheduler, SchedulerOptions
from edge.chat.sequence import Sequence
from edge.chat.step import Step, carry_out
from edge.errors import QueueFullError
from tests.edge.chat.fakes import FakeDecoder, greedy

LANES, WAITING = 3, 4
CONTEXT = 192
OPTIONS = SchedulerOptions(max_waiting=WAITING, chunk=16, shared_chunk=6, roomy_steps=8)
# Prompts that begin alike in several ways, so that lanes are continued and copied.
STEMS = ([1], [1, 2], [3] * 20, list(range(24)), [*range(24), 5, 5])


def sequence(prompt: list[int], count: int, context: int = CONTEXT) -> Sequence:
    return Sequence(np.array(prompt, np.int64), limit=min(context, len(prompt) + count))


def is_done(one: Sequence) -> bool:
    return one.length == one.limit


def sample(scheduler: Scheduler[Sequence], decoder: FakeDecoder, step: Step[Sequence]) -> None:
    """Carry out a step and append greedy tokens; those that are done leave."""
    logits = carry_out(step, decoder)
    for part in step.parts:
        appended = 0
        for at, drafted in enumerate((*part.draft, None)):
            if not part.samples:
                break
            token = int(logits[part.row, at].argmax())
            part.sequence.append(token)
            appended += 1
            if is_done(part.sequence) or token != drafted:
                break
        scheduler.advance(part, appended)
        if is_done(part.sequence):
            scheduler.remove(part.sequence)


class Chats(RuleBasedStateMachine):
    """Sequences that come, draft, are cancelled and end, on a decoder that forgives nothing."""

    context: int

    def __init__(self) -> None:
        super().__init__()
        self.decoder = FakeDecoder(lanes=LANES, context=self.context)
        self.scheduler: Scheduler[Sequence] = Scheduler(
            lanes=LANES, context=self.context, options=OPTIONS, shrinks=True
        )
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.ended: list[Sequence] = []
        self.delayed: set[int] = set()  # who ran in the last step but did not take part
        self.was_prefill = False

    @rule(
        stem=st.sampled_from(STEMS),
        more=st.lists(st.integers(0, 3), max_size=12),
        count=st.integers(1, 40),
    )
    def add(self, stem: list[int], more: list[int], count: int) -> None:
        self.put(stem + more, count)

    @rule(count=st.integers(1, 40))
    def add_long(self, count: int) -> None:
        self.put([7] * (self.context - 20), count)

    @precondition(lambda self: self.ended)
    @rule(number=st.integers(0, 7), more=st.lists(st.integers(0, 3), min_size=1, max_size=12))
    def go_on(self, number: int, more: list[int]) -> None:
        before = self.ended[number % len(self.ended)].tokens.tolist()
        self.put(before + more, 8)

    def put(self, prompt: list[int], count: int) -> None:
        if len(prompt) >= self.context:
            return
        one = sequence(prompt, count, self.context)
        if len(self.waiting) + len(self.running) >= WAITING + LANES:
            with pytest.raises(QueueFullError):
                self.scheduler.add(one)
            return
        self.scheduler.add(one)
        self.waiting.append(one)

    @precondition(lambda self: self.waiting or self.running)
    @rule(number=st.integers(0, 7))
    def cancel(self, number: int) -> None:
        inside = self.waiting + self.running
        gone = inside[number % len(inside)]
        self.scheduler.remove(gone)
        (self.waiting if gone in self.waiting else self.running).remove(gone)

    @precondition(lambda self: self.running)
    @rule(number=st.integers(0, 7), right=st.integers(0, 5), wrong=st.integers(0, 2))
    def draft(self, number: int, right: int, wrong: int) -> None:
        one = self.running[number % len(self.running)]
        room = one.limit - one.length - 1
        if one.generated:
            follows = [*greedy(one.tokens, right), *[28] * wrong]
            one.draft = tuple(follows[: min(room, 5)])

    @rule(count=st.integers(1, 12))
    def run(self, count: int) -> None:
        for _ in range(count):
            self.run_one()

    def run_one(self) -> None:
        step = self.scheduler.plan()
        come = self.waiting[: LANES - len(self.running)]
        self.waiting = self.waiting[len(come) :]
        self.running += come
        assert {id(lane.sequence) for lane in self.scheduler.lanes if lane.sequence} == {
            id(one) for one in self.running
        }
        assert (step is None) == (not self.running)
        if step is None:
            return
        self.check(step)
        sample(self.scheduler, self.decoder, step)
        self.ended += [one for one in self.running if is_done(one)]
        self.running = [one for one in self.running if not is_done(one)]

    def check(self, step: Step[Sequence]) -> None:
        """Prompts and tokens take turns, and all that wait for a token get it together."""
        parts = {id(part.sequence) for part in step.parts}
        ready = {id(one) for one in self.running if one.generated}
        if step.is_prefill:
            assert len(parts) == 1
            assert step.tokens.shape == (1, step.parts[0].fed)
            assert step.parts[0].fed <= (OPTIONS.shared_chunk if ready else OPTIONS.chunk)
        else:
            assert ready <= parts
            assert all(part.start + part.fed == part.sequence.length for part in step.parts)
        delayed = {id(one) for one in self.running} - parts
        if step.is_prefill == self.was_prefill:
            assert not delayed & self.delayed & (ready if step.is_prefill else delayed - ready)
        self.delayed, self.was_prefill = delayed, step.is_prefill

    @invariant()
    def whoever_ended_got_the_tokens_of_a_run_of_its_own(self) -> None:
        for one in self.ended[-LANES:]:
            prompt = one.tokens[: one.prompt_length]
            assert one.tokens[one.prompt_length :].tolist() == greedy(prompt, one.generated)

    def teardown(self) -> None:
        bound = sum(one.limit for one in self.waiting + self.running) + 1
        for _ in range(2 * bound):
            self.run_one()
        assert (self.waiting, self.running) == ([], [])
        assert self.scheduler.plan() is None


class ShortChats(Chats):
    """All lanes are soon at the end of the context."""

    context = 40


class LongChats(Chats):
    """The cache grows and shrinks."""

    context = 500


TestShortChats, TestLongChats = ShortChats.TestCase, LongChats.TestCase
TestShortChats.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestLongChats.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def scheduler(lanes: int = 4, **options: int) -> Scheduler[Sequence]:
    return Scheduler(lanes=lanes, context=CONTEXT, options=SchedulerOptions(**options))


def run(one: Scheduler[Sequence], decoder: FakeDecoder, most: int = 10_000) -> list[Step[Sequence]]:
    """Run all there is, or so many steps."""
    steps = []
    while len(steps) < most and (step := one.plan()) is not None:
        steps.append(step)
        sample(one, decoder, step)
    return steps


def test_a_long_prompt_delays_the_others_by_one_chunk_at_a_time():
    chats, decoder = scheduler(chunk=16, shared_chunk=8), FakeDecoder(context=CONTEXT)
    quick = sequence([1, 2], 30)
    chats.add(quick)
    run(chats, decoder, 1)
    chats.add(sequence([5] * 100, 1))
    kinds = [step.is_prefill for step in run(chats, decoder, 20)]
    assert kinds == [False, True] * 10
    assert quick.generated == 1 + 10


def test_a_prompt_runs_in_large_chunks_while_nobody_waits_for_a_token():
    chats, decoder = scheduler(chunk=16, shared_chunk=8), FakeDecoder(context=CONTEXT)
    chats.add(sequence([5] * 40, 1))
    assert [step.tokens.shape for step in run(chats, decoder)] == [(1, 16), (1, 16), (1, 8)]


def test_a_short_prompt_is_done_before_a_long_one_that_came_first():
    chats, decoder = scheduler(chunk=16), FakeDecoder(context=CONTEXT)
    long, short = sequence([5] * 150, 1), sequence([6] * 10, 1)
    chats.add(long)
    run(chats, decoder, 1)
    chats.add(short)
    run(chats, decoder, 2)
    assert (short.generated, long.generated) == (1, 0)


def test_short_prompts_that_keep_coming_do_not_keep_a_long_one_from_its_end():
    chats, decoder = scheduler(lanes=2, chunk=16), FakeDecoder(lanes=2, context=CONTEXT)
    long = sequence([5] * 160, 1)
    chats.add(long)
    steps = 0
    while not long.generated and steps < 100:
        while chats.waiting + chats.running < 2:
            chats.add(sequence([6 + steps % 9] * 10, 1))
        steps += len(run(chats, decoder, 1))
    assert steps <= 2 * 160 / 16


def test_equal_prompts_are_computed_once():
    chats, decoder = scheduler(chunk=16), FakeDecoder(context=CONTEXT)
    prompt = list(range(25)) * 4
    same = [sequence(prompt, 3) for _ in range(4)]
    for one in same:
        chats.add(one)
    fed = sum(part.fed for step in run(chats, decoder) if step.is_prefill for part in step.parts)
    assert fed <= len(prompt)
    assert [one.reused for one in same] == [0, 99, 99, 99]
    assert all(one.tokens[100:].tolist() == greedy(prompt, 3) for one in same)


def test_the_lane_that_was_used_longest_ago_is_given_up():
    chats, decoder = scheduler(lanes=2), FakeDecoder(lanes=2, context=CONTEXT)
    one, two = sequence([1] * 20, 3), sequence([2] * 20, 3)
    for first in (one, two):
        chats.add(first)
        run(chats, decoder)
    for prompt in (one.tokens.tolist(), [3] * 20, [*one.tokens.tolist(), 4]):
        last = sequence(prompt, 3)
        chats.add(last)
        run(chats, decoder)
    assert last.reused >= 22  # it was kept, and the second went


def test_lanes_far_apart_become_neighbours():
    chats, decoder = scheduler(lanes=8), FakeDecoder(lanes=8, context=CONTEXT)
    all_of_them = [sequence([n, n], 60) for n in range(8)]
    for one in all_of_them:
        chats.add(one)
    run(chats, decoder, 20)
    for one in all_of_them[1:7]:
        chats.remove(one)
    steps = run(chats, decoder)
    assert max(len(step.tokens) for step in steps) == 2
    assert [at for at, step in enumerate(steps) if step.moves] == [0]
    for one in (all_of_them[0], all_of_them[7]):
        assert one.tokens[2:].tolist() == greedy(one.tokens[:2], 60)


def test_a_lane_that_is_idle_for_a_step_or_two_is_not_worth_a_swap():
    chats, decoder = scheduler(lanes=3), FakeDecoder(lanes=3, context=CONTEXT)
    all_of_them = [sequence([n, n], 9) for n in range(3)]
    for one in all_of_them:
        chats.add(one)
    run(chats, decoder, 6)
    chats.remove(all_of_them[1])
    assert [len(step.tokens) for step in run(chats, decoder, 3)] == [3, 3, 3]
    chats.add(sequence([8, 8], 9))
    assert not any(step.moves for step in run(chats, decoder, 5))


def test_the_cache_shrinks_some_time_after_a_long_sequence_is_gone():
    chats = Scheduler(lanes=2, context=1024, options=SchedulerOptions(chunk=512), shrinks=True)
    decoder = FakeDecoder(lanes=2, context=1024, longest_step=512)
    long = sequence([5] * 900, 1, context=1024)
    chats.add(long)
    run(chats, decoder)
    chats.add(sequence([6] * 10, 100, context=1024))
    steps = run(chats, decoder)
    shrunk = [(at, step.shrink) for at, step in enumerate(steps) if step.shrink is not None]
    assert shrunk == [(63, 256)]
    assert [lane.filled for lane in chats.lanes] == [256, 109]


def chats_around_an_idle_lane(
    context: int, **options: int
) -> tuple[Scheduler[Sequence], FakeDecoder, list[Sequence]]:
    """Two sequences in lanes 0 and 2, and a lane between them that is full up to the context."""
    chats = Scheduler(
        lanes=3, context=context, options=SchedulerOptions(**options), shrinks=bool(options)
    )
    decoder = FakeDecoder(lanes=3, context=context)
    for one in (sequence([9, 9], 1), sequence([5] * (context - 2), 9, context)):
        chats.add(one)
        run(chats, decoder)
    both = [sequence([n] * 10, 40, context) for n in (1, 2)]
    for one in both:
        chats.add(one)
        while not one.generated:
            run(chats, decoder, 1)
    assert [lane.sequence for lane in chats.lanes] == [both[1], None, both[0]]
    return chats, decoder, both


def test_an_idle_lane_does_not_make_the_cache_grow_again():
    chats, decoder, _ = chats_around_an_idle_lane(1024, roomy_steps=2)
    assert chats.lanes[1].filled == 128  # all that was left when the cache shrank
    steps = run(chats, decoder, 3)
    assert [step.tokens.shape for step in steps] == [(3, 1)] * 3
    assert [int(step.start[1]) for step in steps] == [127] * 3


def test_a_draft_runs_in_no_lane_beyond_the_context():
    chats, decoder, both = chats_around_an_idle_lane(CONTEXT)
    assert chats.lanes[1].filled == CONTEXT - 1
    both[0].draft = tuple(greedy(both[0].tokens, 4))
    step = chats.plan()
    assert step.tokens.shape == (3, 5)
    assert chats.lanes[1].filled == CONTEXT - 5
    before = both[0].generated
    sample(chats, decoder, step)  # the decoder refuses what lies beyond
    assert both[0].generated == before + 5


def test_a_draft_is_shortened_where_another_sequence_is_near_the_context():
    chats, decoder = scheduler(lanes=2), FakeDecoder(lanes=2, context=CONTEXT)
    other, near = sequence([1, 2], 40), sequence([5] * 189, 9)
    chats.add(other)
    run(chats, decoder, 1)
    chats.add(near)
    while not near.generated:
        run(chats, decoder, 1)
    other.draft = tuple(greedy(other.tokens, 4))
    step, before = chats.plan(), other.generated
    assert step.tokens.shape == (2, 3)
    sample(chats, decoder, step)
    assert other.generated == before + 3


def test_a_full_line_refuses_and_a_free_lane_is_no_line():
    chats = scheduler(lanes=2, max_waiting=1)
    for _ in range(3):
        chats.add(sequence([1, 2], 5))
    with pytest.raises(QueueFullError, match="0 sequences run and 3 wait"):
        chats.add(sequence([1, 2], 5))


def test_who_waits_knows_how_many_are_ahead():
    chats, decoder = scheduler(lanes=1, max_waiting=4), FakeDecoder(lanes=1)
    all_of_them = [sequence([1, n], 5) for n in range(3)]
    for one in all_of_them:
        chats.add(one)
    run(chats, decoder, 1)
    assert [chats.ahead(one) for one in all_of_them] == [None, 0, 1]


def test_64_clients_on_4_lanes_wait_at_most_twice_the_fair_share():
    """Each asks again as soon as it is answered; of a fair share, each has 4/64 of all steps."""
    chats, decoder = scheduler(max_waiting=64, chunk=16), FakeDecoder(context=CONTEXT)
    lengths = np.random.default_rng(7).integers(1, 40, 1000)
    asked: dict[int, tuple[Sequence, int]] = {}
    waits, served = [], Counter()

    def ask(client: int, now: int) -> None:
        count = int(lengths[(client * 17 + served[client]) % len(lengths)])
        one = sequence([client % 29, client // 29, *[3] * (count % 20)], count)
        chats.add(one)
        asked[client] = (one, now)

    for client in range(64):
        ask(client, 0)
    total = 4000
    for now in range(total):
        run(chats, decoder, 1)
        for client, (one, since) in list(asked.items()):
            if is_done(one):
                waits.append(now - since)
                served[client] += 1
                ask(client, now)
    fair = total / (sum(served.values()) / 64)
    assert len(served) == 64
    assert max(waits) <= 2 * fair
    assert max(served.values()) - min(served.values()) <= 2
