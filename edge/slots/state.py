"""What the two slots hold and which one is served: a pure state machine.

    fetching -> staged -> trial -> committed | rolled back

`decide` takes the state that is on disk and an event, and returns the state to write. What it
cannot do is a SlotsError, and leaves the state as it is. Whoever serves looks at `serving` alone.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import msgspec

from edge.errors import InstallCancelledError, RefusedBundleError, SlotsError, StorageError

SCHEMA_VERSION = 1
MAX_STATE_BYTES = 256 << 10
MAX_ATTEMPTS = 3  # starts of one trial
MAX_REFUSED = 64
MAX_REASON_CHARACTERS = 500

SlotName = Literal["a", "b"]
Phase = Literal["fetching", "staged", "trial"]
Result = Literal["committed", "rolled-back"]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
_Text = Annotated[str, msgspec.Meta(max_length=1000)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotBundle:
    """A bundle that lies in a slot. id: see `bundle_id`. release: of a channel, None by hand."""

    id: _Digest
    name: _Text
    version: _Text
    release: _Text | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """The slot that is to be committed. starts: of the agent since its trial began."""

    slot: SlotName
    phase: Phase
    starts: _Count = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A bundle that was rolled back here, and why; it is not installed again unless asked."""

    id: _Digest
    reason: _Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How the last trial, or the last rollback by hand, ended."""

    bundle: SlotBundle
    result: Result
    reason: _Text | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotsState:
    """The content of state.json. changes: how often a bundle was committed or rolled back."""

    schema: int = SCHEMA_VERSION
    a: SlotBundle | None = None
    b: SlotBundle | None = None
    committed: SlotName | None = None
    candidate: Candidate | None = None
    refused: tuple[Refused, ...] = ()
    last: Outcome | None = None
    changes: _Count = 0

    def bundle(self, slot: SlotName) -> SlotBundle | None:
        """Return what lies in a slot."""
        return self.a if slot == "a" else self.b

    @property
    def serving(self) -> SlotName | None:
        """The slot to serve: the one on trial, else the committed one."""
        if self.candidate is not None and self.candidate.phase == "trial":
            return self.candidate.slot
        return self.committed

    @property
    def served(self) -> SlotBundle | None:
        """The bundle to serve."""
        return None if self.serving is None else self.bundle(self.serving)

    @property
    def idle(self) -> SlotName:
        """The slot that the next bundle goes to."""
        return "b" if self.committed == "a" else "a"

    @property
    def previous(self) -> SlotBundle | None:
        """The bundle that a rollback by hand goes back to when nothing is under way."""
        return self.bundle(self.idle) if self.candidate is None else None

    @property
    def coming(self) -> SlotBundle | None:
        """The bundle that is being fetched, staged or tried."""
        return None if self.candidate is None else self.bundle(self.candidate.slot)

    def refusal(self, bundle: str) -> Refused | None:
        """Return why a bundle is not installed again."""
        return next((refused for refused in self.refused if refused.id == bundle), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchBegun:
    """A bundle is to come into the idle slot. again: although it was refused before."""

    bundle: SlotBundle
    again: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """All that this device needs of the bundle with this id is here and durable."""

    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialBegun:
    """What is staged is to be served, and judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartCounted:
    """The agent starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatePassed:
    """The trial of the bundle with this id held what it promises."""

    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GateFailed:
    """The trial of the bundle with this id did not."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackAsked:
    """Somebody wants what was before: without what is under way, or the previous bundle."""

    reason: str


Event = FetchBegun | Staged | TrialBegun | StartCounted | GatePassed | GateFailed | RollbackAsked


def bundle_id(manifest: bytes) -> str:
    """Return what names a bundle: the sha256 of its manifest.json."""
    return hashlib.sha256(manifest).hexdigest()


def decide(state: SlotsState, event: Event) -> SlotsState:
    """Return the state after an event; raises SlotsError if it cannot happen in this one."""
    if isinstance(event, FetchBegun):
        return _fetch_begun(state, event)
    if isinstance(event, Staged):
        return _staged(state, event)
    if isinstance(event, TrialBegun):
        return _trial_begun(state)
    if isinstance(event, StartCounted):
        return _start_counted(state)
    if isinstance(event, GatePassed):
        return _committed(state, event)
    if isinstance(event, GateFailed):
        _trial_of(state, event.id)
        return _candidate_dropped(state, event.reason)
    return _rolled_back(state, event.reason)


def bytes_from_state(state: SlotsState) -> bytes:
    """Return the canonical bytes of state.json; raises SlotsError if they could not be read again.

    A state that cannot be read leaves a device that neither updates nor goes back.
    """
    content = _encoded(state)
    try:
        same = len(content) <= MAX_STATE_BYTES and state_from_bytes(content) == state
    except StorageError as error:
        raise SlotsError(_CANNOT_NOTE) from error
    if not same:
        raise SlotsError(_CANNOT_NOTE)
    return content


def _encoded(state: SlotsState) -> bytes:
    return msgspec.json.format(msgspec.json.encode(state, order="sorted"), indent=1) + b"\n"


def state_from_bytes(content: bytes) -> SlotsState:
    """Return the state that content spells; raises StorageError if it spells none."""
    try:
        state = msgspec.json.decode(content, type=SlotsState)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise StorageError(f"state.json of the slots is malformed: {error}; {_WAY_OUT}") from error
    problem = _problem_with(state)
    if _encoded(state) != content:
        problem = "it is not in canonical form, or has a field this agent does not know"
    if problem is not None:
        raise StorageError(f"state.json of the slots: {problem}; {_WAY_OUT}")
    return state


_WAY_OUT = "move the file away and install the bundle again"
_CANNOT_NOTE = (
    "the slots stay as they are: what state.json would say could not be read again; give the "
    "bundle a shorter name and version"
)


def _problem_with(state: SlotsState) -> str | None:
    if state.schema != SCHEMA_VERSION:
        return f"it has schema {state.schema}, this agent reads {SCHEMA_VERSION}"
    if state.committed is not None and state.bundle(state.committed) is None:
        return "the committed slot is empty"
    candidate = state.candidate
    if candidate is not None and candidate.slot != state.idle:
        return "the candidate lies in the committed slot"
    if candidate is not None and state.coming is None:
        return "the slot of the candidate is empty"
    return None


def _fetch_begun(state: SlotsState, event: FetchBegun) -> SlotsState:
    bundle, refused, coming = event.bundle, state.refusal(event.bundle.id), state.coming
    if coming is not None and coming.id == bundle.id:
        return state
    if state.candidate is not None and state.candidate.phase == "trial":
        raise SlotsError(
            f"bundle {_words(coming)} is on trial; finish it with `edge-agent gate`, or end it "
            "with `edge-agent rollback`"
        )
    committed = None if state.committed is None else state.bundle(state.committed)
    if committed is not None and committed.id == bundle.id:
        return _with_bundle(replace(state, candidate=None), state.idle, None) if coming else state
    if refused is not None and not event.again:
        raise RefusedBundleError(
            f"bundle {_words(bundle)} was rolled back on this device: {refused.reason}; "
            "install it with --again if it shall be tried once more"
        )
    state = _with_bundle(state, state.idle, bundle)
    kept = tuple(other for other in state.refused if other.id != bundle.id)
    return replace(state, candidate=Candidate(slot=state.idle, phase="fetching"), refused=kept)


def _staged(state: SlotsState, event: Staged) -> SlotsState:
    candidate, coming = state.candidate, state.coming
    if candidate is None or coming is None or coming.id != event.id:
        raise InstallCancelledError(
            f"the installation of bundle {event.id[:12]} was cancelled; the device serves "
            f"{_words(state.served)}"
        )
    if candidate.phase != "fetching":
        return state
    return replace(state, candidate=replace(candidate, phase="staged"))


def _trial_begun(state: SlotsState) -> SlotsState:
    candidate = state.candidate
    if candidate is None or candidate.phase == "fetching":
        raise SlotsError("nothing is staged; install a bundle first")
    if candidate.phase == "trial":
        return state
    return replace(state, candidate=replace(candidate, phase="trial", starts=0))


def _start_counted(state: SlotsState) -> SlotsState:
    candidate = state.candidate
    if candidate is None or candidate.phase != "trial":
        return state
    if candidate.starts >= MAX_ATTEMPTS:
        return _candidate_dropped(state, f"started {MAX_ATTEMPTS} times and was never committed")
    return replace(state, candidate=replace(candidate, starts=candidate.starts + 1))


def _committed(state: SlotsState, event: GatePassed) -> SlotsState:
    candidate = _trial_of(state, event.id)
    bundle = state.bundle(candidate.slot)
    assert bundle is not None  # noqa: S101 - see _problem_with
    return replace(
        state,
        committed=candidate.slot,
        candidate=None,
        last=Outcome(bundle=bundle, result="committed"),
        changes=state.changes + 1,
    )


def _rolled_back(state: SlotsState, reason: str) -> SlotsState:
    if state.candidate is not None:
        return _candidate_dropped(state, reason)
    if state.committed is None or state.previous is None:
        raise SlotsError(
            "there is no bundle to go back to: no update is under way, and no other slot holds "
            "an earlier bundle; install one"
        )
    back = replace(state, committed=state.idle)
    return _dropped(back, state.committed, reason)


def _candidate_dropped(state: SlotsState, reason: str) -> SlotsState:
    assert state.candidate is not None  # noqa: S101 - asked before
    return _dropped(replace(state, candidate=None), state.candidate.slot, reason)


def _dropped(state: SlotsState, slot: SlotName, reason: str) -> SlotsState:
    """Empty a slot and remember never to install its bundle again."""
    bundle = state.bundle(slot)
    assert bundle is not None  # noqa: S101 - see _problem_with
    why = _kept_reason(reason)
    refused = tuple(other for other in state.refused if other.id != bundle.id)
    return replace(
        _with_bundle(state, slot, None),
        refused=(*refused, Refused(id=bundle.id, reason=why))[-MAX_REFUSED:],
        last=Outcome(bundle=bundle, result="rolled-back", reason=why),
        changes=state.changes + 1,
    )


def _kept_reason(reason: str) -> str:
    """Return a reason as one short line of UTF-8: a command line may hold bytes that are none."""
    line = " ".join(reason.encode("utf-8", "replace").decode().split())
    is_whole = len(line) <= MAX_REASON_CHARACTERS
    return line if is_whole else line[: MAX_REASON_CHARACTERS - 1] + "…"


def _trial_of(state: SlotsState, bundle: str) -> Candidate:
    candidate, coming = state.candidate, state.coming
    if candidate is None or candidate.phase != "trial" or coming is None or coming.id != bundle:
        raise SlotsError(
            f"bundle {bundle[:12]} is not on trial any more; the device serves "
            f"{_words(state.served)}"
        )
    return candidate


def _with_bundle(state: SlotsState, slot: SlotName, bundle: SlotBundle | None) -> SlotsState:
    return replace(state, a=bundle) if slot == "a" else replace(state, b=bundle)


def _words(bundle: SlotBundle | None) -> str:
    return "nothing" if bundle is None else f"{bundle.name} {bundle.version} ({bundle.id[:12]})"
