"""The state machine of the slots, driven at random against a model that says what must hold."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from edge.errors import InstallCancelledError, RefusedBundleError, SlotsError, StorageError
from edge.slots.state import (
    MAX_ATTEMPTS,
    MAX_REASON_CHARACTERS,
    MAX_REFUSED,
    MAX_STATE_BYTES,
    Candidate,
    FetchBegun,
    GateFailed,
    GatePassed,
    RollbackAsked,
    SlotBundle,
    SlotsState,
    Staged,
    StartCounted,
    TrialBegun,
    bytes_from_state,
    decide,
    state_from_bytes,
)


def bundle(number: int) -> SlotBundle:
    return SlotBundle(id=f"{number:064x}", name="net", version=str(number))


def after(state: SlotsState, *events: Any) -> SlotsState:
    for event in events:
        state = decide(state, event)
    return state


def trial(number: int) -> tuple[Any, ...]:
    """The events that bring a bundle to its trial."""
    return (FetchBegun(bundle=bundle(number)), Staged(id=bundle(number).id), TrialBegun())


def committed(number: int) -> tuple[Any, ...]:
    return (*trial(number), GatePassed(id=bundle(number).id))


EMPTY = SlotsState()
numbers = st.integers(min_value=0, max_value=5)


class Slots(RuleBasedStateMachine):
    """served, fallback: what a user expects to be served now, and if what is under way ends."""

    @initialize()
    def start(self) -> None:
        self.state = EMPTY
        self.fallback: int | None = None
        self.previous: int | None = None
        self.coming: int | None = None
        self.phase = "none"
        self.starts = 0
        self.refused: set[int] = set()

    def go(self, event: Any) -> None:
        self.state = decide(self.state, event)

    def refuses(self, event: Any, error: type[SlotsError] = SlotsError) -> None:
        before = self.state
        with pytest.raises(error):
            decide(self.state, event)
        assert self.state == before

    def drop(self) -> None:
        assert self.coming is not None
        self.refused.add(self.coming)
        self.coming, self.phase = None, "none"
        self.previous = None

    @rule(number=numbers, again=st.booleans())
    def fetch(self, number: int, again: bool) -> None:
        event = FetchBegun(bundle=bundle(number), again=again)
        if self.coming == number:
            before = self.state
            self.go(event)
            assert self.state == before
        elif self.phase == "trial":
            self.refuses(event)
        elif number == self.fallback:
            self.go(event)
            if self.coming is not None:
                self.coming, self.phase, self.previous = None, "none", None
        elif number in self.refused and not again:
            self.refuses(event, RefusedBundleError)
        else:
            self.go(event)
            self.refused.discard(number)
            self.coming, self.phase, self.previous = number, "fetching", None

    @rule(number=numbers)
    def stage(self, number: int) -> None:
        event = Staged(id=bundle(number).id)
        if number != self.coming:
            self.refuses(event, InstallCancelledError)
            return
        self.go(event)
        self.phase = "staged" if self.phase == "fetching" else self.phase

    @rule()
    def begin(self) -> None:
        if self.phase in {"none", "fetching"}:
            self.refuses(TrialBegun())
            return
        self.go(TrialBegun())
        if self.phase == "staged":
            self.phase, self.starts = "trial", 0

    @rule()
    def start_agent(self) -> None:
        before = self.state
        self.go(StartCounted())
        if self.phase != "trial":
            assert self.state == before
            return
        self.starts += 1
        if self.starts > MAX_ATTEMPTS:
            self.drop()

    @rule(number=numbers)
    def gate_passes(self, number: int) -> None:
        event = GatePassed(id=bundle(number).id)
        if self.phase != "trial" or number != self.coming:
            self.refuses(event)
            return
        self.go(event)
        self.previous, self.fallback = self.fallback, number
        self.coming, self.phase = None, "none"

    @rule(number=numbers)
    def gate_fails(self, number: int) -> None:
        event = GateFailed(id=bundle(number).id, reason="too slow")
        if self.phase != "trial" or number != self.coming:
            self.refuses(event)
            return
        self.go(event)
        self.drop()

    @rule()
    def roll_back(self) -> None:
        event = RollbackAsked(reason="by hand")
        if self.coming is not None:
            self.go(event)
            self.drop()
        elif self.previous is None:
            self.refuses(event)
        else:
            self.go(event)
            assert self.fallback is not None
            self.refused.add(self.fallback)
            self.fallback, self.previous = self.previous, None

    @invariant()
    def it_serves_what_a_user_expects(self) -> None:
        served = self.coming if self.phase == "trial" else self.fallback
        assert self.state.served == (None if served is None else bundle(served))
        assert self.state.previous == (None if self.previous is None else bundle(self.previous))
        assert self.state.coming == (None if self.coming is None else bundle(self.coming))

    @invariant()
    def only_what_was_rolled_back_is_refused(self) -> None:
        assert {int(r.id, 16) for r in self.state.refused} == self.refused

    @invariant()
    def it_is_read_as_it_was_written(self) -> None:
        content = bytes_from_state(self.state)
        assert state_from_bytes(content) == self.state
        # By the standard library alone.
        assert (
            content == (json.dumps(json.loads(content), indent=1, sort_keys=True) + "\n").encode()
        )


TestSlots = Slots.TestCase
TestSlots.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_trial_that_starts_too_often_is_rolled_back() -> None:
    state = after(EMPTY, *committed(1), *trial(2), *[StartCounted()] * MAX_ATTEMPTS)
    assert state.served == bundle(2)
    state = decide(state, StartCounted())
    assert state.served == bundle(1)
    assert state.refusal(bundle(2).id) is not None


def test_a_first_trial_that_fails_leaves_nothing_served() -> None:
    state = after(EMPTY, *trial(1), GateFailed(id=bundle(1).id, reason="not ready"))
    assert state.serving is None
    assert (state.a, state.b) == (None, None)


def test_refusals_and_reasons_are_bounded() -> None:
    state = after(EMPTY, *committed(0))
    for number in range(1, MAX_REFUSED + 10):
        failed = GateFailed(id=bundle(number).id, reason="é\n" * 9999)
        state = after(state, *trial(number), failed)
    assert len(state.refused) == MAX_REFUSED
    assert state.refusal(bundle(1).id) is None
    assert all(len(r.reason) <= MAX_REASON_CHARACTERS and "\n" not in r.reason
               for r in state.refused)  # fmt: skip
    assert len(bytes_from_state(state)) < MAX_STATE_BYTES


@pytest.mark.parametrize("field", ["name", "version", "release"])
def test_a_state_that_could_not_be_read_again_is_not_written(field: str) -> None:
    long = replace(bundle(2), **{field: "x" * 1001})
    state = after(EMPTY, *committed(1), FetchBegun(bundle=long))
    with pytest.raises(SlotsError, match="stay as they are"):
        bytes_from_state(state)


@pytest.mark.parametrize("reason", ["x" * 10_000, "\udcff too slow", "\0" * 10_000])
def test_any_reason_is_kept_in_a_form_that_can_be_read_again(reason: str) -> None:
    state = after(EMPTY, *committed(1), *trial(2), RollbackAsked(reason=reason))
    assert state_from_bytes(bytes_from_state(state)) == state
    kept = state.refusal(bundle(2).id)
    assert kept is not None
    assert kept.reason[:1] in {"x", "?", "\0"}
    assert kept.reason.endswith("…" if len(reason) > 1000 else "slow")


def content(**changes: object) -> bytes:
    state = json.loads(bytes_from_state(after(EMPTY, *committed(1), *trial(2))))
    return (json.dumps({**state, **changes}, indent=1, sort_keys=True) + "\n").encode()


@pytest.mark.parametrize(
    "damaged",
    [
        b"", b"[]", b"{", b"[" * 9999, b"\xff", content()[:-1], content() + b"\n", b" " + content(),
        content(committed="c"), content(committed="b"), content(committed=None), content(a=None),
        content(b=None), content(schema=2), content(extra=1), content(changes=-1),
        content(candidate={"slot": "a", "phase": "trial", "starts": 0}),
        content(candidate={"slot": "b", "phase": "eternal", "starts": 0}),
    ],
)  # fmt: skip
def test_a_state_that_no_store_has_written_is_refused(damaged: bytes) -> None:
    with pytest.raises(StorageError, match="install the bundle again"):
        state_from_bytes(damaged)


@given(st.integers(min_value=0), st.integers(min_value=1, max_value=255))
@settings(max_examples=300, deadline=None)
def test_a_flipped_byte_is_refused_or_spells_another_valid_state(at: int, mask: int) -> None:
    whole = bytearray(content())
    whole[at % len(whole)] ^= mask
    with contextlib.suppress(StorageError):
        assert bytes_from_state(state_from_bytes(bytes(whole))) == whole


def test_an_empty_device_serves_nothing_and_has_nothing_to_go_back_to() -> None:
    assert EMPTY.served is None
    for event in (RollbackAsked(reason="x"), TrialBegun(), GatePassed(id=bundle(1).id)):
        with pytest.raises(SlotsError):
            decide(EMPTY, event)
    assert decide(EMPTY, StartCounted()) == EMPTY
    assert isinstance(msgspec.json.decode(bytes_from_state(EMPTY)), dict)
    assert Candidate(slot="a", phase="staged").starts == 0
