"""The gate: switches to the bundle on trial, asks it, watches it, and keeps it or goes back.

It speaks to the agent over HTTP alone, so that an agent that hangs, or never comes, fails as well.
Whoever is killed here leaves a trial: `Gate.finish` goes on with it, see edge-gate.timer.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from edge.errors import EdgeError, SlotsError
from edge.files import read_capped
from edge.gate import checks
from edge.gate.baseline import Baseline, read_baseline, write_baseline
from edge.gate.closeness import Answering, closeness_by_model
from edge.gate.limits import Limits
from edge.gate.questions import Answers, ask_bundle, golden_reader
from edge.gate.replaying import Replay
from edge.gate.report import Check, GateReport, Verdict, reason_of
from edge.gate.seen import Seen, looked
from edge.http_client import AgentClient
from edge.manifest import MAX_MANIFEST_BYTES, Manifest
from edge.manifest_reading import manifest_from_bytes
from edge.slots.layout import Layout
from edge.slots.state import SlotBundle, SlotName, bundle_id
from edge.slots.store import Store

# Whoever puts a recording there has every bundle judged by it, however it comes.
KEPT_REQUESTS = "requests.capture"
LOOK_S = 1.0
_SAID_EVERY_S = 30.0
# For how long a GPU may seem idle while it is asked, and how long nobody asks in between.
LOAD_S = 5.0
PAUSE_S = 0.001


class _Cancelled(Exception):  # noqa: N818 - no error: somebody rolled back
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """How a trial is judged. url: of the agent on this device. capture: requests to send again.

    Without capture those in KEPT_REQUESTS beside the slots are sent, if there are any.
    log: returns the last lines that the agent logged, for the report. stopwatch: times answers.
    """

    url: str
    limits: Limits = field(default_factory=Limits)
    capture: Path | None = None
    say: Callable[[str], None] = lambda line: None
    log: Callable[[], tuple[str, ...]] = tuple
    clock: Callable[[], float] = time.monotonic
    stopwatch: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep


class Gate:
    """Judges the trials of one store; used inside `store.changing`."""

    def __init__(self, store: Store, judge: Judge) -> None:
        self._store = store
        self._judge = judge
        self._replay = _replay_for(store, judge)

    def try_staged(self) -> GateReport:
        """Measure the bundle in service, switch to the staged one, and judge it.

        Raises SlotsError if nothing is staged, StorageError if the disk cannot be written.
        """
        coming = self._store.state.coming
        if coming is not None:
            baseline = self._measure_before(coming)
            if baseline is not None:
                write_baseline(self._store.root, baseline)
        try:
            self._store.begin_trial()
        except SlotsError:
            if coming is None or self._store.state.coming is not None:
                raise
        assert coming is not None  # noqa: S101 - of nothing no trial begins
        # Somebody may have rolled back while it was measured, or right after the switch.
        return self.finish() or self._ended(_cancelled(coming))

    def finish(self) -> GateReport | None:
        """Judge the trial that is under way; None if there is none."""
        state = self._store.state
        trial, candidate = state.coming, state.candidate
        if trial is None or candidate is None or candidate.phase != "trial":
            return None
        began = self._judge.clock()
        self._say(f"on trial: {trial.name} {trial.version}")
        found: list[Check] = []
        verdict: Verdict = "rolled-back"
        try:
            self._examine(trial, candidate.slot, found)
            if all(check.passed for check in found):
                verdict = "committed"
        except _Cancelled:
            verdict = "cancelled"
        report = GateReport(
            bundle=trial.id,
            verdict=verdict,
            reason=reason_of(tuple(found)),
            checks=tuple(found),
            seconds=round(self._judge.clock() - began, 3),
            serves=trial.id if verdict == "committed" else None,
            notes=() if verdict == "committed" else self._judge.log(),
        )
        return self._ended(report)

    def _ended(self, report: GateReport) -> GateReport:
        try:
            if report.verdict == "committed":
                self._store.commit(report.bundle, report)
                self._say("committed")
                return report
            if report.verdict == "rolled-back":
                self._say(f"going back: {report.reason}")
                self._store.fail(report.bundle, report.reason, report)
        except SlotsError:
            report = replace(report, verdict="cancelled", serves=None)
        if report.verdict == "cancelled":
            last = self._store.state.last
            why = "" if last is None or last.reason is None else f": {last.reason}"
            report = replace(report, reason=f"the trial was ended by a rollback{why}")
        served = self._store.state.served
        if served is None:
            self._say("nothing is left to serve: install another bundle")
            return report
        return replace(report, serves=self._await_back(served))

    def _measure_before(self, coming: SlotBundle) -> Baseline | None:
        state, limits = self._store.state, self._judge.limits
        slot = state.committed
        current = None if slot is None else state.bundle(slot)
        if slot is None or current is None:
            return None
        with closing(self._client()) as client:
            seen = looked(client)
            if not isinstance(seen, Seen) or seen.bundle.manifest_sha256 != current.id:
                self._say("the bundle in service does not answer: there is nothing to compare with")
                return None
            self._say(f"measuring {current.name} {current.version} first")
            try:
                asked = self._answers(client, slot, current, seen, limits)
            except EdgeError as error:  # damage there must not keep a good bundle out
                self._say(f"the bundle in service cannot be asked: {error}")
                return None
            # A model that does not answer now is no measure for the next.
            answers = tuple(one for one in asked if one.problem is None)
            if self._replay is not None:
                self._replay.before()
            after = looked(client)
        memory = max((s.memory_bytes or 0 for s in (seen, after) if isinstance(s, Seen)), default=0)
        return Baseline(
            bundle=current.id,
            trial=coming.id,
            answers=answers,
            memory_bytes=memory or None,
            variants={model.name: model.variant for model in seen.models},
        )

    def _answers(
        self, client: AgentClient, slot: SlotName, bundle: SlotBundle, seen: Seen, limits: Limits
    ) -> tuple[Answers, ...]:
        folder = Layout(self._store.root).slot(slot)
        variants = {model.name: model.variant for model in seen.models}
        manifest, stopwatch = self._manifest(slot, bundle), self._judge.stopwatch
        return tuple(ask_bundle(client, folder, manifest, variants, limits, clock=stopwatch))

    def _manifest(self, slot: SlotName, bundle: SlotBundle) -> Manifest:
        path = Layout(self._store.root).manifest(slot)
        content = read_capped(path, max_bytes=MAX_MANIFEST_BYTES)
        if bundle_id(content) != bundle.id:  # the id was verified when the bundle was staged
            raise SlotsError(f"{path} is not the manifest that was installed; install it again")
        return manifest_from_bytes(content)

    def _examine(self, trial: SlotBundle, slot: SlotName, found: list[Check]) -> None:
        """Add checks; stops after those without which the next make no sense."""
        limits = self._judge.limits
        with closing(self._client()) as client:
            seen, problem = self._await_ready(client, trial)
            found.append(
                Check(
                    name="ready",
                    passed=problem is None,
                    measured="ready" if problem is None else "not ready",
                    limit=f"{limits.ready_s:g} s",
                    reason=problem or "",
                )
            )
            if seen is None or problem is not None:
                return
            found += checks.backend_checks(seen)
            try:
                manifest = self._manifest(slot, trial)
                answers = self._answers(client, slot, trial, seen, limits)
            except EdgeError as error:
                found.append(
                    Check(
                        name="golden answers",
                        passed=False,
                        measured="none",
                        limit="an answer each time",
                        reason=str(error),
                    )
                )
                return
            found += checks.answer_checks(answers)
            found += checks.gpu_checks(*self._on_gpu(client, trial, slot, seen))
            if not all(check.passed for check in found):
                return
            self._say(f"its answers are right; watching it for {limits.probation_s:g} s")
            baseline = read_baseline(self._store.root, trial.id)
            before = {} if baseline is None else {one.model: one for one in baseline.answers}
            variants = {model.name: model.variant for model in seen.models}
            latency = tuple(checks.latency_checks(before, answers, manifest, variants, limits))
            if not all(check.passed for check in latency):
                # Right after a start, and beside other work, one measurement is not enough.
                self._say("it was slow; measuring once more")
                answers = self._answers(client, slot, trial, seen, limits)
                latency = tuple(checks.latency_checks(before, answers, manifest, variants, limits))
            found += latency
            peak = self._watch(client, trial, seen, found)
            memory = None if baseline is None else baseline.memory_bytes
            found.append(checks.memory_check(memory, peak, manifest, variants, limits))
        if self._replay is not None:
            found += self._replayed(
                self._replay, self._answering(slot, manifest, variants), baseline
            )

    def _replayed(
        self, replay: Replay, now: Answering, baseline: Baseline | None
    ) -> Iterator[Check]:
        limits = self._judge.limits
        before = None
        if replay.has_asked:
            try:
                before = self._answered_before({} if baseline is None else baseline.variants)
            except EdgeError as error:  # damage there must not keep a good bundle out
                self._say(f"what the bundle before promised cannot be read: {error}")
        close = closeness_by_model(now, before, most=limits.replay_tolerance)
        yield from checks.replay_checks(
            replay.now(close, most=limits.replay_tolerance), limits, close
        )

    def _answering(
        self, slot: SlotName, manifest: Manifest, variants: Mapping[str, str]
    ) -> Answering:
        folder = Layout(self._store.root).slot(slot)
        return Answering(manifest=manifest, variants=variants, read=golden_reader(folder, manifest))

    def _answered_before(self, variants: Mapping[str, str]) -> Answering | None:
        state = self._store.state
        slot = state.committed
        bundle = None if slot is None else state.bundle(slot)
        if slot is None or bundle is None:
            return None
        return self._answering(slot, self._manifest(slot, bundle), variants)

    def _await_ready(
        self, client: AgentClient, trial: SlotBundle
    ) -> tuple[Seen | None, str | None]:
        """Return the agent when it serves the trial, or with the reason why it does not."""
        limits, began = self._judge.limits, self._judge.clock()
        built_until, said = began, began
        while True:
            self._check_cancelled(trial)
            seen, now = looked(client), self._judge.clock()
            if isinstance(seen, EdgeError):
                state = str(seen)
            elif seen.bundle.manifest_sha256 != trial.id:
                state = f"it still serves {seen.bundle.name} {seen.bundle.version}"
            elif seen.ready:
                return seen, None
            elif seen.phase in {"serving", "failed"}:
                return seen, seen.condition or "it is not ready"
            else:
                state = seen.activity or f"it is {seen.phase}"
                if seen.activity:
                    built_until = now
            # An engine that is being built has its own time, on top.
            spent = now - began
            is_building = built_until > began and spent <= limits.ready_s + limits.build_s
            if spent > limits.ready_s and not (is_building and now - built_until < limits.ready_s):
                return None, f"not within {spent:.0f} s: {state}"
            if now - said >= _SAID_EVERY_S:
                self._say(f"waiting for the agent: {state}")
                said = now
            self._judge.sleep(LOOK_S)

    def _on_gpu(
        self, client: AgentClient, trial: SlotBundle, slot: SlotName, seen: Seen
    ) -> tuple[Seen, float | None]:
        """Return the agent as soon as its GPU does not seem idle, and the most load that it had.

        It reads its probes once a second: what it told when it became ready may be older than the
        engine that it serves.
        """
        load, began = seen.gpu_load_percent, self._judge.clock()
        few = replace(self._judge.limits, rounds=1)
        while checks.seems_idle(seen, load) and self._judge.clock() - began < LOAD_S:
            asked_at = self._judge.clock()
            while self._judge.clock() - asked_at < LOOK_S:
                with contextlib.suppress(EdgeError):  # its answers are judged already
                    self._answers(client, slot, trial, seen, few)
                self._judge.sleep(PAUSE_S)
            now = looked(client)
            if isinstance(now, Seen):
                seen = msgspec.structs.replace(seen, machine=now.machine)
                loads = (load, now.gpu_load_percent)
                load = max((one for one in loads if one is not None), default=None)
        return seen, load

    def _watch(
        self, client: AgentClient, trial: SlotBundle, first: Seen, found: list[Check]
    ) -> int | None:
        """Watch the trial for its probation; return the most memory that was seen."""
        limits, began = self._judge.limits, self._judge.clock()
        last, interruptions, peak = first, [], first.memory_bytes
        while self._judge.clock() - began < limits.probation_s:
            self._check_cancelled(trial)
            self._judge.sleep(LOOK_S)
            seen = looked(client)
            if isinstance(seen, EdgeError):
                interruptions.append(str(seen))
                continue
            if not seen.ready or seen.bundle.manifest_sha256 != trial.id:
                interruptions.append(seen.condition or "it serves another bundle")
            if seen.uptime_s < last.uptime_s:
                interruptions.append("the agent was restarted")
            last = seen
            if seen.memory_bytes is not None:
                peak = max(peak or 0, seen.memory_bytes)
        found += checks.probation_checks(first, last, interruptions, limits)
        return peak

    def _await_back(self, served: SlotBundle) -> str | None:
        """Return the id of the bundle when it serves again, None if it does not in time."""
        began = self._judge.clock()
        with closing(self._client()) as client:
            while self._judge.clock() - began < self._judge.limits.back_s:
                seen = looked(client)
                is_back = isinstance(seen, Seen) and seen.bundle.manifest_sha256 == served.id
                if isinstance(seen, Seen) and is_back and seen.ready:
                    self._say(f"{served.name} {served.version} serves again")
                    return served.id
                self._judge.sleep(LOOK_S)
        self._say(f"{served.name} {served.version} does not serve again yet; see the agent's log")
        return None

    def _check_cancelled(self, trial: SlotBundle) -> None:
        coming = self._store.state.coming
        if coming is None or coming.id != trial.id:
            raise _Cancelled

    def _client(self) -> AgentClient:
        ask_s = self._judge.limits.ask_s
        return AgentClient(self._judge.url, timeout_s=ask_s, whole_s=ask_s)

    def _say(self, line: str) -> None:
        self._judge.say(line)


def _cancelled(coming: SlotBundle) -> GateReport:
    return GateReport(
        bundle=coming.id, verdict="cancelled", reason="", checks=(), seconds=0.0, serves=None
    )


def _replay_for(store: Store, judge: Judge) -> Replay | None:
    """Return the requests that a trial is judged by; raises CaptureError if those given are none.

    Those that are kept on the device keep no bundle out if they are damaged.
    """
    if judge.capture is not None:
        return Replay(judge.capture, judge.url)
    kept = store.root / KEPT_REQUESTS
    if not kept.exists():
        return None
    try:
        return Replay(kept, judge.url)
    except EdgeError as error:
        judge.say(f"the kept requests are not sent: {error}")
        return None
