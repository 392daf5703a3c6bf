"""Checks as pure functions: each limit from both sides."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from edge.capture.answers import Closeness
from edge.capture.replay_report import Latency, Report
from edge.gate import checks
from edge.gate.limits import SLACK_BYTES, SLACK_MS, Limits
from edge.gate.questions import Answers
from edge.gate.report import reason_of
from edge.gate.seen import Seen, SeenBundle, SeenGpu, SeenMachine, SeenModel
from edge.manifest import Manifest, Measurement
from tests.bundles import affine_parts

LIMITS = Limits()
MANIFEST = affine_parts()[0]
VARIANTS = {"affine": "int8"}


def seen(*, uptime_s: float = 10.0, gpu: int | None = None, **model: Any) -> Seen:
    facts = {"name": "affine", "variant": "int8", "means": "ort-cpu", "ready": True, **model}
    return Seen(
        uptime_s=uptime_s,
        phase="serving",
        ready=True,
        bundle=SeenBundle(name="b", version="1", manifest_sha256="0" * 64),
        models=(SeenModel(**facts),),
        machine=SeenMachine(rss_bytes=1, gpus=() if gpu is None else (SeenGpu(gpu),)),
    )


def answers(**changes: Any) -> Answers:
    whole = Answers(model="affine", asked=20, p95_ms=10.0, error=0.01, tolerance=0.1)
    return replace(whole, **changes)


def measured(p99_ms: float) -> Manifest:
    figure = Measurement(
        device="d", runtime="r", threads=1, batch=1, runs=9, p50_ms=p99_ms, p99_ms=p99_ms
    )
    (model,) = MANIFEST.models
    variants = tuple(replace(v, measurements=(figure,)) for v in model.variants)
    return replace(MANIFEST, models=(replace(model, variants=variants),))


def test_a_model_on_the_cpu_that_was_packed_for_a_gpu_fails() -> None:
    (check,) = checks.backend_checks(seen(degradation="packed for a GPU, runs on the CPU"))
    assert (check.passed, check.reason) == (False, "packed for a GPU, runs on the CPU")


@pytest.mark.parametrize(("held", "passed"), [(0, False), (1, True)])
def test_a_model_that_says_gpu_and_holds_no_memory_there_fails(held: int, passed: bool) -> None:
    found = seen(means="engine", gpu=held)
    (gpu,) = checks.gpu_checks(found, 50.0)
    assert (gpu.passed, checks.seems_idle(found, 50.0)) == (passed, not passed)


@pytest.mark.parametrize(
    ("model", "load", "passed", "measured"),
    [
        ({"means": "ort-cuda"}, 3.0, True, "a GPU at 3 %"),
        ({"means": "ort-cuda"}, 0.0, False, "GPUs at 0 %"),
        ({"means": "ort-cuda", "memory_bytes": 1 << 20}, 0.0, False, "GPUs at 0 %"),
        ({"means": "engine", "memory_bytes": 1 << 20}, 3.0, True, "a GPU at 3 %"),
        ({"means": "engine", "memory_bytes": 1 << 20}, 0.0, True, "an engine that holds 1 MB"),
        ({"means": "engine", "memory_bytes": 1 << 20}, None, True, "an engine that holds 1 MB"),
        ({"means": "engine"}, 0.0, False, "GPUs at 0 %"),
        ({"means": "engine"}, None, True, "cannot be told"),
        ({"means": "ort-cuda"}, None, True, "cannot be told"),
    ],
)
def test_where_memory_is_not_told_by_process_other_signs_of_the_gpu_count(
    model: dict[str, Any], load: float | None, passed: bool, measured: str
) -> None:
    found = seen(**model)
    (gpu,) = checks.gpu_checks(found, load)
    assert (gpu.passed, checks.seems_idle(found, load)) == (passed, load == 0.0)
    assert gpu.measured.startswith(measured)


def test_a_model_on_the_cpu_is_not_asked_for_its_gpu() -> None:
    assert list(checks.gpu_checks(seen(gpu=1), 50.0)) == []
    assert not checks.seems_idle(seen(gpu=0), 0.0)


@pytest.mark.parametrize(
    ("changes", "passed"),
    [
        ({}, True),
        ({"error": 0.1}, True),
        ({"error": 0.11}, False),
        ({"error": math.inf}, False),
        ({"problem": "answers 500"}, False),
        ({"error": None, "tolerance": None}, True),
        ({"error": None, "tolerance": None, "problem": "a completion is empty"}, False),
    ],
)
def test_answers_must_come_and_be_within_their_tolerance(
    changes: dict[str, Any], passed: bool
) -> None:
    (check,) = checks.answer_checks([answers(**changes)])
    assert check.passed is passed


@pytest.mark.parametrize(
    ("before_ms", "now_ms", "passed"),
    [(10.0, 15.0, True), (10.0, 15.1, False), (0.1, 2.1, True), (0.1, 2.2, False)],
)
def test_p95_is_held_against_the_bundle_before(
    before_ms: float, now_ms: float, passed: bool
) -> None:
    before = {"affine": answers(p95_ms=before_ms)}
    now = [answers(p95_ms=now_ms)]
    (check,) = checks.latency_checks(before, now, measured(100.0), VARIANTS, LIMITS)
    assert check.passed is passed
    assert SLACK_MS == 2.0


@pytest.mark.parametrize(("now_ms", "passed"), [(40.0, True), (40.1, False), (math.inf, False)])
def test_without_a_bundle_before_p95_is_held_against_the_manifest(
    now_ms: float, passed: bool
) -> None:
    now = [answers(p95_ms=now_ms)]
    (check,) = checks.latency_checks({}, now, measured(4.0), VARIANTS, LIMITS)
    assert (check.passed, "4.00 recorded" in check.limit) == (passed, True)


def releases_until_refused(recorded_ms: float | None, *, first_ms: float, growth: float) -> int:
    """How many releases in a row pass, each slower than the one before by the same factor."""
    manifest = MANIFEST if recorded_ms is None else measured(recorded_ms)
    before, now_ms = {"affine": answers(p95_ms=first_ms)}, first_ms
    for release in range(50):
        now_ms *= growth
        now = answers(p95_ms=now_ms)
        (check,) = checks.latency_checks(before, [now], manifest, VARIANTS, LIMITS)
        if not check.passed:
            return release
        before = {"affine": now}
    return 50


def test_releases_that_get_slower_little_by_little_are_stopped_by_the_manifest() -> None:
    # 5 ms * 1.4 ** n is within 10 x 4 ms for n up to 6.
    assert releases_until_refused(4.0, first_ms=5.0, growth=1.4) == 6
    assert releases_until_refused(None, first_ms=5.0, growth=1.4) == 50


def test_a_device_that_was_beyond_the_figures_before_is_held_against_itself_alone() -> None:
    assert releases_until_refused(4.0, first_ms=41.0, growth=1.4) == 50
    assert releases_until_refused(4.0, first_ms=41.0, growth=1.6) == 0


def test_a_new_model_that_nobody_measured_has_nothing_to_be_held_against() -> None:
    before = {"another": answers(model="another", p95_ms=1.0)}
    (check,) = checks.latency_checks(before, [answers()], MANIFEST, VARIANTS, LIMITS)
    assert (check.passed, check.limit) == (True, "nothing to compare with")


@pytest.mark.parametrize(
    ("before", "peak", "passed"),
    [
        (1 << 30, 3 << 29, True),
        (1 << 30, (3 << 29) + 1, False),
        (1 << 20, (1 << 20) + SLACK_BYTES, True),
        (1 << 20, (1 << 20) + SLACK_BYTES + 1, False),
        (1 << 30, None, True),
    ],
)
def test_memory_is_held_against_the_bundle_before(
    before: int, peak: int | None, passed: bool
) -> None:
    assert checks.memory_check(before, peak, MANIFEST, VARIANTS, LIMITS).passed is passed


def test_without_a_bundle_before_memory_is_held_against_the_manifest() -> None:
    (model,) = MANIFEST.models
    variants = tuple(replace(v, memory_bytes=100 << 20) for v in model.variants)
    manifest = replace(MANIFEST, models=(replace(model, variants=variants),))
    most = 10 * (100 << 20) + 4 * SLACK_BYTES
    for peak, passed in ((most, True), (most + 1, False)):
        assert checks.memory_check(None, peak, manifest, VARIANTS, LIMITS).passed is passed
    assert checks.memory_check(None, 1 << 50, MANIFEST, VARIANTS, LIMITS).passed


def test_memory_that_grows_little_by_little_is_stopped_by_the_manifest() -> None:
    (model,) = MANIFEST.models
    variants = tuple(replace(v, memory_bytes=100 << 20) for v in model.variants)
    manifest = replace(MANIFEST, models=(replace(model, variants=variants),))
    most = 10 * (100 << 20) + 4 * SLACK_BYTES
    for before, peak, passed in (
        (most - 1, most, True),
        (most - 1, most + 1, False),
        (most + 1, most + 2, True),
    ):
        assert checks.memory_check(before, peak, manifest, VARIANTS, LIMITS).passed is passed


def probation(first: Seen, last: Seen, *interruptions: str) -> dict[str, bool]:
    found = checks.probation_checks(first, last, interruptions, LIMITS)
    return {check.name: check.passed for check in found}


def test_an_agent_that_stays_up_passes_its_probation() -> None:
    assert probation(seen(), seen(uptime_s=40.0)) == {
        "no interruption": True,
        "no error burst": True,
    }


def test_a_restart_and_any_interruption_fail_the_probation() -> None:
    assert not probation(seen(), seen(uptime_s=3.0))["no interruption"]
    assert not probation(seen(), seen(uptime_s=40.0), "no answer")["no interruption"]


@pytest.mark.parametrize(
    ("requests", "passed"),
    [
        ({"ok": 100, "inference": 2}, True),  # too few to be a burst
        ({"ok": 100, "inference": 3}, False),
        ({"ok": 1000, "inference": 10}, True),
        ({"ok": 1000, "inference": 5, "deadline": 6}, False),
        ({"ok": 10, "input": 500, "queue-full": 500}, True),  # not the bundle's fault
    ],
)
def test_errors_since_the_switch_are_a_burst_beyond_their_share(
    requests: dict[str, int], passed: bool
) -> None:
    before = {"ok": 7, "inference": 50}
    after = {code: before.get(code, 0) + n for code, n in requests.items()}
    after = {**before, **after}
    found = probation(seen(requests=before), seen(uptime_s=40.0, requests=after))
    assert found["no error burst"] is passed


NUMBERS = {"affine": Closeness(tolerance=0.1)}
CLASSES = {"affine": Closeness(tolerance=0.1, scores="y")}


def replayed(
    *, different: int = 0, reclassified: float = 0.0, compared: int = 3, now_ms: float | None = 9.0,
    closeness: dict[str, Closeness] = NUMBERS,
) -> dict[str, bool]:  # fmt: skip
    latencies = [(name, ms) for name, ms in (("recorded", 10.0), ("now", 9.0), ("against", now_ms))]
    report = Report(
        is_same=not different, requests=compared, compared=compared, not_compared=0, outputs=(),
        statuses={}, problems={}, differing=tuple(range(different))[:10], different=different,
        reclassified=reclassified,
        latency=tuple(Latency(who=w, p50_ms=ms, p95_ms=ms, p99_ms=ms) for w, ms in latencies),
    )  # fmt: skip
    found = checks.replay_checks(report, LIMITS, closeness)
    return {check.name: check.passed for check in found}


def test_a_replay_must_be_answered_alike_and_as_fast() -> None:
    assert replayed(now_ms=15.0) == {"replay answers": True, "replay p95 latency": True}
    assert not replayed(different=1)["replay answers"]
    assert not replayed(now_ms=15.1)["replay p95 latency"]
    assert not replayed(now_ms=None)["replay p95 latency"]


@pytest.mark.parametrize(
    ("reclassified", "compared", "passed"),
    [(1, 3, True), (1.1, 3, False), (20, 1000, True), (20.5, 1000, False)],
)
def test_two_bundles_within_the_accuracy_gate_may_part_on_a_fiftieth(
    reclassified: float, compared: int, passed: bool
) -> None:
    found = replayed(reclassified=reclassified, compared=compared, closeness=CLASSES)
    assert (found["replay answers"], found["replay classes"]) == (True, passed)


def test_the_reason_names_what_failed_and_nothing_else() -> None:
    found = tuple(checks.answer_checks([answers(), answers(model="other", error=0.5)]))
    assert reason_of(found) == (
        "other golden answers: relative error 5.00e-01, 1.00e-01 is allowed"
    )
    assert reason_of(found[:1]) == ""
